package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// DNSMasq is dnsmasq as the only DNS server of a realm, by UDP and TCP on one
// port of 127.0.0.1. It needs dnsmasq, but not root.
type DNSMasq struct {
	addr    string
	process *process // nil after Stop
}

// StartDNSMasq starts dnsmasq with all its files below dir, and returns when it
// answers. The lines are those of dnsmasq's configuration file, such as
//
//	srv-host=_kerberos._tcp.RIG.TEST,kdc.rig.test,88,0,100
//	host-record=kdc.rig.test,127.0.0.1
//	cname=www.rig.test,web.rig.test
//
// All other names do not exist (NXDOMAIN). Started by root, dnsmasq runs as
// nobody, with dir as StartApache has it.
func StartDNSMasq(ctx context.Context, dir string, lines ...string) (*DNSMasq, error) {
	program, err := find("dnsmasq")
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		if strings.ContainsAny(line, "\r\n") {
			return nil, fmt.Errorf("line break in the line %q", line)
		}
	}
	dir, owner, err := ownDir(dir)
	if err != nil {
		return nil, err
	}
	port, err := freeDNSPort(ctx)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "dnsmasq.conf")
	if err := writeTemplate(conf, "dnsmasq.conf", struct {
		Dir   string
		Port  int
		Lines []string
	}{dir, port, lines}); err != nil {
		return nil, err
	}
	if err := giveAway(dir, owner); err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "--keep-in-foreground", "--log-facility=-", "--conf-file="+conf)
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	p, err := startProcess("dnsmasq", cmd, filepath.Join(dir, "dnsmasq.out"))
	if err != nil {
		return nil, err
	}
	d := &DNSMasq{addr: loopback(port), process: p}
	if err := p.ready(ctx, filepath.Join(dir, "dnsmasq.pid"), d.addr); err != nil {
		return nil, err
	}
	return d, nil
}

// Addr returns dnsmasq's host:port.
func (d *DNSMasq) Addr() string { return d.addr }

// Resolver returns a resolver that asks dnsmasq and no other server. Its
// LookupHost and LookupCNAME still look into /etc/hosts first.
func (d *DNSMasq) Resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, d.addr)
		},
	}
}

// Stop ends dnsmasq. When it has ended it does nothing.
func (d *DNSMasq) Stop() {
	if d.process != nil {
		d.process.stop()
		d.process = nil
	}
}

// freeDNSPort returns a port that is free for TCP and for UDP.
func freeDNSPort(ctx context.Context) (int, error) {
	var failures error
	for range 10 {
		port, err := freePort()
		if err != nil {
			return 0, err
		}
		var config net.ListenConfig
		conn, err := config.ListenPacket(ctx, "udp", loopback(port))
		if err == nil {
			return port, conn.Close()
		}
		failures = errors.Join(failures, err)
	}
	return 0, fmt.Errorf("find a free port: %w", failures)
}
