package peer

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// handshake connects as another process would be seen: the client is a child
// with the given credential, nil for this process itself.
func handshake(t *testing.T, as *syscall.Credential) Caller {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if as == nil {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	} else {
		// The test binary itself, where everybody may run it.
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		exe := filepath.Join(dir, "peer.test")
		if err := os.WriteFile(exe, self, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = []string{"CONNECT_TO=" + path}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer stdin.Close()
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, info, err := Credentials().ServerHandshake(c)
	if err != nil {
		t.Fatal(err)
	}
	if info.(authInfo).SecurityLevel != credentials.PrivacyAndIntegrity {
		t.Error("the socket does not count as secure")
	}
	caller, ok := Of(grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{AuthInfo: info}))
	if ok != (caller.UID != overflow) {
		t.Errorf("uid %d: named %v", caller.UID, ok)
	}
	return caller
}

func TestMain(m *testing.M) {
	if path := os.Getenv("CONNECT_TO"); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			panic(err)
		}
		os.Stdin.Read(make([]byte, 1)) // until the parent has looked
		c.Close()
		return
	}
	os.Exit(m.Run())
}

func TestSelf(t *testing.T) {
	c := handshake(t, nil)
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if c.UID != uint32(os.Geteuid()) || c.GID != uint32(os.Getegid()) || c.PID != int32(os.Getpid()) || len(c.Groups) != len(groups) {
		t.Errorf("%+v, groups %v", c, groups)
	}
}

func TestOtherUser(t *testing.T) {
	rig.Require(t, "root")      // to be somebody else
	many := make([]uint32, 300) // more than fit at the first try
	for i := range many {
		many[i] = uint32(10000 + i)
	}
	c := handshake(t, &syscall.Credential{Uid: 4242, Gid: 4243, Groups: many})
	if c.UID != 4242 || c.GID != 4243 || !slices.Equal(c.Groups, many) {
		t.Errorf("uid %d, gid %d, %d groups", c.UID, c.GID, len(c.Groups))
	}
	handshake(t, &syscall.Credential{Uid: overflow, Gid: overflow})
}

func TestNoCredentialsElsewhere(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := Credentials().ServerHandshake(a); err == nil {
		t.Error("a pipe has a peer")
	}
	if _, _, err := Credentials().ClientHandshake(t.Context(), "", a); err == nil {
		t.Error("clients may use them")
	}
	if _, ok := Of(t.Context()); ok {
		t.Error("nobody is somebody")
	}
}

func TestRules(t *testing.T) {
	rules := func(texts ...string) []Rule {
		var all []Rule
		for _, s := range texts {
			r, err := ParseRule(s)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		return all
	}
	build := Caller{UID: 1000, GID: 100, Groups: []uint32{20, 30}}
	for _, c := range []struct {
		rules  []Rule
		caller Caller
		want   bool
	}{
		{nil, build, false},
		{nil, Caller{}, false},
		{rules("uid:1000"), build, true},
		{rules("uid:100"), build, false},
		{rules("gid:1000"), build, false},
		{rules("gid:100"), build, true},
		{rules("gid:30"), build, true},
		{rules("uid:1", "gid:20"), build, true},
		{rules("user:root"), Caller{}, true},
		{rules("user:root"), build, false},
		{rules("group:root"), Caller{UID: 5, GID: 5, Groups: []uint32{0}}, true},
		{[]Rule{User(1000)}, build, true},
		{[]Rule{User(overflow)}, Caller{UID: overflow}, false},
		{rules("gid:30"), Caller{UID: overflow, Groups: []uint32{30}}, false},
		{[]Rule{{group: true, id: overflow}}, Caller{UID: 1000, GID: overflow}, false},
	} {
		if got := Allowed(c.rules, c.caller); got != c.want {
			t.Errorf("%v, %+v: %v", c.rules, c.caller, got)
		}
	}
	for _, s := range []string{"", "build", "user:", "user:no-such-user", "group:no-such-group", "uid:", "uid:x", "uid:-1", "uid:4294967296", "gid:65534", "uid:" + strconv.Itoa(overflow), "USER:root"} {
		if r, err := ParseRule(s); err == nil {
			t.Errorf("%q gave %+v", s, r)
		}
	}
}
