package rig

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server in this process (RFC 1035), over UDP and TCP on a free
// port of 127.0.0.1. It has authority over all names: those it was not told of
// do not exist (NXDOMAIN). Names are absolute, with or without a dot at the end,
// in any case. Its methods may be used while it serves.
type DNS struct {
	addr     string
	listener net.Listener
	packets  net.PacketConn
	serving  sync.WaitGroup

	mu      sync.Mutex
	records map[string][]dnsmessage.ResourceBody // by name
	queries []string
	silent  bool
	conns   map[net.Conn]bool // nil when closed
}

// NewDNS starts a name server that knows no name yet.
func NewDNS() (*DNS, error) {
	ln, packets, err := listenBoth()
	if err != nil {
		return nil, err
	}
	d := &DNS{
		addr: ln.Addr().String(), listener: ln, packets: packets,
		records: make(map[string][]dnsmessage.ResourceBody),
		conns:   make(map[net.Conn]bool),
	}
	d.serving.Go(d.serveUDP)
	d.serving.Go(d.serveTCP)
	return d, nil
}

// Addr returns the server's host:port.
func (d *DNS) Addr() string { return d.addr }

// Resolver returns a resolver that asks this server alone. It waits and asks
// again as /etc/resolv.conf says, and looks at /etc/hosts first.
func (d *DNS) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, d.addr)
	}}
}

// SRV adds a service's record (RFC 2782) to a name such as
// _kerberos._udp.CORP.EXAMPLE. Target "." says that there is no such service.
func (d *DNS) SRV(name string, priority, weight uint16, target string, port uint16) {
	d.add(name, &dnsmessage.SRVResource{Priority: priority, Weight: weight, Port: port, Target: dnsName(target)})
}

// Host adds A and AAAA records to a name.
func (d *DNS) Host(name string, addresses ...netip.Addr) {
	for _, a := range addresses {
		if a.Is4() {
			d.add(name, &dnsmessage.AResource{A: a.As4()})
		} else {
			d.add(name, &dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
}

// CNAME makes a name an alias of another.
func (d *DNS) CNAME(name, target string) {
	d.add(name, &dnsmessage.CNAMEResource{CNAME: dnsName(target)})
}

func (d *DNS) add(name string, record dnsmessage.ResourceBody) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := absolute(name)
	d.records[key] = append(d.records[key], record)
}

// Remove forgets all records of a name.
func (d *DNS) Remove(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.records, absolute(name))
}

// SetSilent makes the server take queries and answer none, or answer again.
func (d *DNS) SetSilent(silent bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent = silent
}

// Queries returns what was asked so far, such as "SRV _kerberos._udp.a.test.",
// in the order of arrival, repetitions too.
func (d *DNS) Queries() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.queries)
}

// Close ends the server and waits until nothing of it runs: connections are
// refused.
func (d *DNS) Close() {
	d.mu.Lock()
	d.listener.Close()
	d.packets.Close()
	for conn := range d.conns {
		conn.Close()
	}
	d.conns = nil
	d.mu.Unlock()
	d.serving.Wait()
}

func (d *DNS) serveUDP() {
	query := make([]byte, 64<<10)
	for {
		n, client, err := d.packets.ReadFrom(query)
		if err != nil {
			return
		}
		if reply, limit, err := d.answer(query[:n]); err == nil && reply != nil {
			if len(reply) > limit {
				if reply, err = truncated(query[:n]); err != nil {
					continue
				}
			}
			d.packets.WriteTo(reply, client)
		}
	}
}

func (d *DNS) serveTCP() {
	for {
		conn, err := d.listener.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		if d.conns == nil {
			conn.Close()
		} else {
			d.conns[conn] = true
			d.serving.Go(func() { d.serve(conn) })
		}
		d.mu.Unlock()
	}
}

// serve answers the queries of a connection: each message has its length in two
// bytes before it (RFC 1035, 4.2.2).
func (d *DNS) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		d.mu.Lock()
		delete(d.conns, conn)
		d.mu.Unlock()
	}()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply, _, err := d.answer(query)
		if err != nil || len(reply) > 1<<16-1 {
			return
		}
		if reply == nil {
			continue
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// answer returns the reply to a query, nil while silent, and the largest reply
// that the client takes over UDP (RFC 1035, 4.2.1; RFC 6891, 6.2.3).
func (d *DNS) answer(query []byte) (reply []byte, limit int, err error) {
	header, question, limit, err := parseQuery(query)
	if err != nil {
		return nil, 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queries = append(d.queries, strings.TrimPrefix(question.Type.String(), "Type")+" "+question.Name.String())
	if d.silent {
		return nil, limit, nil
	}
	var answers []dnsmessage.Resource
	name, exists := question.Name.String(), true
	for range 10 { // an alias of itself has an end
		records, ok := d.records[absolute(name)]
		exists = ok
		var next string
		for _, record := range records {
			kind := typeOf(record)
			if kind == question.Type || kind == dnsmessage.TypeCNAME {
				owner, err := dnsmessage.NewName(name)
				if err != nil {
					return nil, 0, err
				}
				answers = append(answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: owner, Type: kind, Class: dnsmessage.ClassINET, TTL: 60}, Body: record,
				})
			}
			if alias, ok := record.(*dnsmessage.CNAMEResource); ok && question.Type != dnsmessage.TypeCNAME {
				next = alias.CNAME.String()
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	m := dnsmessage.Message{Header: replyHeader(header), Questions: []dnsmessage.Question{question}, Answers: answers}
	if !exists {
		m.RCode = dnsmessage.RCodeNameError
	}
	reply, err = m.Pack()
	return reply, limit, err
}

// parseQuery takes a query with one question apart.
func parseQuery(query []byte) (header dnsmessage.Header, question dnsmessage.Question, limit int, err error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return header, question, 0, err
	}
	if m.Response || len(m.Questions) != 1 {
		return header, question, 0, errors.New("rig: no query with one question")
	}
	limit = 512
	for _, r := range m.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			limit = max(limit, int(r.Header.Class))
		}
	}
	return m.Header, m.Questions[0], limit, nil
}

// truncated is the reply that sends the client to TCP (RFC 1035, 4.2.1).
func truncated(query []byte) ([]byte, error) {
	header, question, _, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{Header: replyHeader(header), Questions: []dnsmessage.Question{question}}
	m.Truncated = true
	return m.Pack()
}

func replyHeader(query dnsmessage.Header) dnsmessage.Header {
	return dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true,
		RecursionDesired: query.RecursionDesired, RecursionAvailable: true}
}

func typeOf(record dnsmessage.ResourceBody) dnsmessage.Type {
	switch record.(type) {
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	case *dnsmessage.AAAAResource:
		return dnsmessage.TypeAAAA
	case *dnsmessage.CNAMEResource:
		return dnsmessage.TypeCNAME
	default:
		return dnsmessage.TypeSRV
	}
}

// absolute is a name's key: names differ in more than case and the last dot.
func absolute(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, ".")) + "."
}

// dnsName makes a name for a record; it panics if there can be no such name.
func dnsName(name string) dnsmessage.Name {
	return dnsmessage.MustNewName(strings.TrimSuffix(name, ".") + ".")
}
