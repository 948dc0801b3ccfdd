package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// What make bench sets. By default a test that shares the machine with others fails
// only if something is wrong.
var (
	rounds = flag.Int("rounds", 30, "rounds of TestSpeed: each runs both commands of a pair")
	slack  = flag.Float64("slack", 2, "how many times its limit a quotient may be in TestSpeed")
)

// speedRuns is how often it is tried whether the machine is quiet enough for figures.
const speedRuns = 5

const (
	maxSize = 2_000_000 // bytes, stripped
	maxRSS  = 3 << 10   // KiB
)

// TestSpeed measures whole processes of `sessionctl raw`, with a real agent and a
// session at hand, beside git's own helper that keeps a password in memory, and beside a
// Go program that does nothing. A quotient is the median of those of the rounds.
//
// A processor under a hypervisor makes the C library's start slow, and with it git's; so
// there are two programs to be compared with.
func TestSpeed(t *testing.T) {
	daemontest.Require(t, "git")
	s := newSpeed(t)
	ours := s.command("", filepath.Join(bin, "sessionctl"), "raw", "jira", "--socket", s.agent())
	cookie := s.output(ours) // and a session is at hand from now on
	if !strings.Contains(cookie, "JSESSIONID=CANARY-") {
		t.Fatalf("sessionctl raw printed %q", cookie)
	}
	git := s.gitCache()
	empty := s.command("", s.build("empty", emptyProgram))
	again := s.command("", s.build("again", emptyProgram))

	st, err := os.Stat(filepath.Join(bin, "sessionctl"))
	if err != nil {
		t.Fatal(err)
	}
	emptySize, err := os.Stat(empty.argv[0])
	if err != nil {
		t.Fatal(err)
	}
	// A process counts the memory of the one that started it as its own, and that one
	// grows with the rounds.
	rss := s.compare(1, empty, ours).ours.rss
	table := fmt.Sprintf("%d bytes, stripped; an empty Go program has %d\n%d KiB of memory, or less\n", st.Size(), emptySize.Size(), rss)
	if st.Size() > maxSize || rss > maxRSS {
		t.Errorf("%d bytes on disk, %d KiB in memory; want %d and %d at most", st.Size(), rss, maxSize, maxRSS)
	}
	// A run counts if the same program twice takes the same time.
	var same pairing
	void := true
	for run := 0; run < speedRuns && void; run++ {
		same = s.compare(*rounds, empty, again)
		void = math.Abs(same.wall-1) > 0.05
	}
	table += fmt.Sprintf("%-26s %s\n", "the same program twice", same)
	if void && *slack == 1 {
		t.Errorf("the same program twice: %.2f; the machine is too busy for figures", same.wall)
	}
	for _, pair := range []struct {
		name   string
		beside command
		limit  float64
	}{
		{"git credential-cache get", git, 1.30},
		{"an empty Go program", empty, 1.75},
	} {
		p := s.compare(*rounds, pair.beside, ours)
		table += fmt.Sprintf("%-26s %s\n", pair.name, p)
		if p.wall > pair.limit**slack {
			t.Errorf("%.2f times what %s takes, in %d rounds; want %.2f at most, with a slack of %g", p.wall, pair.name, *rounds, pair.limit, *slack)
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	table += "load: " + string(load)
	if got := s.output(ours); got != cookie {
		t.Errorf("there was a login in between: %q became %q", cookie, got)
	}
	t.Log("\n" + table)
}

// emptyProgram is what no Go program is faster than.
const emptyProgram = "package main\n\nfunc main() {}\n"

// pairProgram runs two programs by turns, which of them first being left to chance: one
// that follows itself is faster. It is a program of its own because a process counts the
// memory of the one that started it as its own.
const pairProgram = `package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	rounds, err := strconv.Atoi(os.Args[1])
	check(err)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	check(err)
	for range rounds {
		first := rand.IntN(2)
		for _, which := range []int{first, 1 - first} {
			run(which, strings.Split(os.Args[2+which], "\x1f"), int(null.Fd()))
		}
	}
}

// run runs argv[1:] with the file argv[0] as its input and prints what that took.
func run(which int, argv []string, null int) {
	in, err := os.Open(argv[0])
	check(err)
	start := time.Now()
	pid, err := syscall.ForkExec(argv[1], argv[1:], &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{in.Fd(), uintptr(null), 2}})
	check(err)
	var status syscall.WaitStatus
	var usage syscall.Rusage
	_, err = syscall.Wait4(pid, &status, 0, &usage)
	wall := time.Since(start)
	check(err)
	if !status.Exited() || status.ExitStatus() != 0 {
		check(fmt.Errorf("%q: status %d", argv, status))
	}
	in.Close()
	fmt.Println(which, wall.Nanoseconds(), usage.Utime.Nano()+usage.Stime.Nano(), usage.Maxrss)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
`

// speed measures commands.
type speed struct {
	t    *testing.T
	dir  string
	env  []string
	pair string // pairProgram's binary
}

func newSpeed(t *testing.T) *speed {
	s := &speed{t: t, dir: t.TempDir()}
	// git's configuration, and where its daemon listens.
	s.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C"}
	s.pair = s.build("pair", pairProgram)
	return s
}

// build builds a program as sessionctl is built.
func (s *speed) build(name, source string) string {
	s.t.Helper()
	binary := filepath.Join(s.dir, name)
	if err := os.WriteFile(binary+".go", []byte(source), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.goBuild("-o", binary, binary+".go")
	return binary
}

func (s *speed) goBuild(args ...string) {
	s.t.Helper()
	build := exec.CommandContext(s.t.Context(), "go", append([]string{"build", "-trimpath", "-buildmode=exe", "-ldflags", "-s -w"}, args...)...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("go build %q: %v\n%s", args, err, out)
	}
}

// command is a program with its arguments, and a file with its input.
type command struct {
	stdin string
	argv  []string
}

func (s *speed) command(stdin string, argv ...string) command {
	s.t.Helper()
	if stdin == "" {
		return command{os.DevNull, argv}
	}
	f, err := os.CreateTemp(s.dir, "stdin")
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = f.WriteString(stdin)
	if err := errors.Join(err, f.Close()); err != nil {
		s.t.Fatal(err)
	}
	return command{f.Name(), argv}
}

// output runs a command once.
func (s *speed) output(c command) string {
	s.t.Helper()
	in, err := os.Open(c.stdin)
	if err != nil {
		s.t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.CommandContext(s.t.Context(), c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.Stdin = s.env, in
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%q: %v", c.argv, err)
	}
	return string(out)
}

// agent starts a sessiond as it is released, with its usual settings, and the sites of
// a lab. It returns its socket.
func (s *speed) agent() string {
	s.t.Helper()
	lab, err := daemontest.StartLab(daemontest.LabOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			s.t.Error(err)
		}
	})
	if err := lab.StopAgent(); err != nil {
		s.t.Fatal(err)
	}
	config := filepath.Join(lab.Dir, "sessiond.toml")
	text, err := os.ReadFile(config)
	if err != nil {
		s.t.Fatal(err)
	}
	// A lab's agent asks the site before each answer.
	const always = `recheck       = "0s"`
	if !bytes.Contains(text, []byte(always)) {
		s.t.Fatalf("no %s in the lab's configuration", always)
	}
	if err := os.WriteFile(config, bytes.ReplaceAll(text, []byte(always), nil), 0o600); err != nil {
		s.t.Fatal(err)
	}
	sessiond := filepath.Join(s.dir, "sessiond")
	s.goBuild("-o", sessiond, "../sessiond")
	cmd := exec.Command(sessiond, "--config", config, "--store", filepath.Join(lab.Dir, "state", "store.db"), "--socket", lab.Socket)
	cmd.Env = append(slices.Clone(s.env), "KRB5_CONFIG="+filepath.Join(lab.Dir, "krb5.conf"))
	log, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	serves, read := make(chan struct{}), make(chan struct{})
	var said strings.Builder
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "the agent serves") {
				close(serves)
			}
		}
	}()
	s.t.Cleanup(func() {
		err := cmd.Process.Signal(syscall.SIGTERM)
		<-read
		if err := errors.Join(err, cmd.Wait()); err != nil {
			s.t.Errorf("sessiond: %v\n%s", err, &said)
		}
	})
	select {
	case <-serves:
	case <-read:
		s.t.Fatal("sessiond does not serve")
	}
	return lab.Socket
}

// gitCache starts git's cache, puts a password into it, and returns the command that
// asks for it.
func (s *speed) gitCache() command {
	s.t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		s.t.Fatal(err)
	}
	const who = "protocol=https\nhost=jira.corp.example\n"
	s.output(s.command(who+"username=svc\npassword=CANARY-git\n\n", git, "credential-cache", "--timeout", "3600", "store"))
	s.t.Cleanup(func() {
		exit := exec.Command(git, "credential-cache", "exit")
		exit.Env = s.env
		if err := exit.Run(); err != nil {
			s.t.Error(err)
		}
	})
	get := s.command(who+"\n", git, "credential-cache", "get")
	if out := s.output(get); !strings.Contains(out, "password=CANARY-git\n") {
		s.t.Fatalf("git credential-cache get printed %q", out)
	}
	return get
}

// pairing is what the commands of a pair take: medians, and the medians of the quotients
// of ours and the one beside it.
type pairing struct {
	beside, ours usage
	wall, cpu    float64
}

// usage is what a process takes.
type usage struct {
	wall, cpu time.Duration
	rss       int // KiB, the most
}

func (p pairing) String() string {
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	return fmt.Sprintf("%.2f ms (cpu %.2f), ours %.2f ms (cpu %.2f): quotient %.2f (cpu %.2f)",
		ms(p.beside.wall), ms(p.beside.cpu), ms(p.ours.wall), ms(p.ours.cpu), p.wall, p.cpu)
}

// warmUp is how many rounds are not counted.
const warmUp = 2

// compare runs both commands in so many rounds.
func (s *speed) compare(rounds int, beside, ours command) pairing {
	s.t.Helper()
	argv := []string{fmt.Sprint(warmUp + rounds)}
	for _, c := range []command{beside, ours} {
		argv = append(argv, strings.Join(append([]string{c.stdin}, c.argv...), "\x1f"))
	}
	cmd := exec.CommandContext(s.t.Context(), s.pair, argv...)
	var stderr bytes.Buffer
	cmd.Env, cmd.Stderr = s.env, &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%v: %s", err, &stderr)
	}
	var took [2][]usage
	for line := range strings.Lines(string(out)) {
		var which int
		var u usage
		if _, err := fmt.Sscan(line, &which, &u.wall, &u.cpu, &u.rss); err != nil {
			s.t.Fatalf("%q: %v", line, err)
		}
		took[which] = append(took[which], u)
	}
	var walls, cpus []float64
	for i := range took {
		took[i] = took[i][warmUp:]
	}
	for n, u := range took[0] {
		walls = append(walls, float64(took[1][n].wall)/float64(u.wall))
		cpus = append(cpus, float64(took[1][n].cpu)/float64(u.cpu))
	}
	return pairing{medians(took[0]), medians(took[1]), median(walls), median(cpus)}
}

func medians(all []usage) (m usage) {
	var walls, cpus []time.Duration
	for _, u := range all {
		walls, cpus = append(walls, u.wall), append(cpus, u.cpu)
		m.rss = max(m.rss, u.rss)
	}
	m.wall, m.cpu = median(walls), median(cpus)
	return m
}

func median[T float64 | time.Duration](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}
