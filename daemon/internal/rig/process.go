package rig

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server that runs as a child in its own process group. The kernel
// kills it when the test process ends in whatever way.
type process struct {
	name   string
	cmd    *exec.Cmd
	output string        // the file that takes its standard output and error
	ended  chan struct{} // closed when it has ended
	err    error         // why, valid after ended
}

// startProcess starts cmd with its output added to the file output.
func startProcess(name string, cmd *exec.Cmd, output string) (*process, error) {
	out, err := os.OpenFile(output, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL

	p := &process{name: name, cmd: cmd, output: output, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, not the
		// process (prctl(2)): this keeps that thread for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// ready waits until the process accepts TCP connections on every address. If it
// does not, the process is ended. The pid file, which servers write when they
// have their ports, tells it from another process on the same address.
func (p *process) ready(ctx context.Context, pidFile string, addresses ...string) error {
	answers := func(ctx context.Context) bool { return p.answers(ctx, pidFile, addresses) }
	return p.await(ctx, answers, addresses...)
}

// await is ready for servers that tell in another way that they answer on every
// address. The context of answers ends when the process does.
func (p *process) await(ctx context.Context, answers func(context.Context) bool, addresses ...string) error {
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.ended:
			cancel()
		case <-alive.Done():
		}
	}()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !answers(alive) {
		select {
		case <-poll.C:
		case <-p.ended:
			return fmt.Errorf("%s ended at once: %w: %s", p.name, p.err, p.lastOutput())
		case <-ctx.Done():
			p.stop()
			return fmt.Errorf("%s does not answer on %s: %w: %s", p.name, addresses, ctx.Err(), p.lastOutput())
		}
	}
	return nil
}

func (p *process) answers(ctx context.Context, pidFile string, addresses []string) bool {
	b, err := os.ReadFile(pidFile)
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(p.cmd.Process.Pid) {
		return false
	}
	var dialer net.Dialer
	for _, address := range addresses {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return false
		}
		conn.Close()
	}
	return true
}

// stop ends the process: SIGTERM, and SIGKILL to what is left after five seconds.
func (p *process) stop() {
	// An error means that it has ended already.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	patience := time.NewTimer(5 * time.Second)
	defer patience.Stop()
	select {
	case <-p.ended:
	case <-patience.C:
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

func (p *process) lastOutput() string {
	b, err := os.ReadFile(p.output)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-1000):]))
}

// environment is what a server or an administrator's tool sees: nothing of the
// test's own variables but PATH.
func environment(variables ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}, variables...)
}

// clientEnv returns the variables that let users of libkrb5 find the realm that
// dir/krb5.conf describes, and a ticket cache in dir.
func clientEnv(dir string) []string {
	return []string{
		"KRB5_CONFIG=" + filepath.Join(dir, "krb5.conf"),
		"KRB5CCNAME=FILE:" + filepath.Join(dir, "krb5cc"),
	}
}

// freePort returns a port on which nothing listens on 127.0.0.1, neither for TCP
// nor for UDP. It lies below Linux's range of ephemeral ports (from 32768), so that no outgoing
// connection takes it before the server does or while the server is stopped.
func freePort() (int, error) {
	const low, high = 10240, 32768
	var err error
	for range 100 {
		port := low + rand.IntN(high-low)
		var l net.Listener
		if l, err = net.Listen("tcp", loopback(port)); err != nil {
			continue
		}
		var u net.PacketConn
		if u, err = net.ListenPacket("udp", loopback(port)); err != nil {
			l.Close()
			continue
		}
		return port, errors.Join(l.Close(), u.Close())
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
