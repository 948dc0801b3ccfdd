package rig

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/types"
)

// maxMessage is the largest request that the KDC reads, in bytes. A TGT with
// AD's largest PAC fits.
const maxMessage = 256 << 10

// Mode is how a KDC behaves on its port.
type Mode int

// What a KDC on the network can be like. Modes that only a stream can have leave
// the UDP port unused, as Refusing does.
const (
	Answering  Mode = iota // as RFC 4120 says
	Silent                 // takes requests, never answers
	Refusing               // nobody listens
	Garbage                // answers with bytes that are no Kerberos message
	Truncating             // half of the answer, behind its full length over TCP
	HugeLength             // stream: announces an answer of 3 GiB: RFC 4120, 7.2.2 leaves the length to the sender
	HTTPServer             // stream: a web server has the port; it answers any bytes with an HTTP error
	Flood                  // stream: announces 100 bytes and sends zeros without end
	LongFlood              // stream: announces a byte less than 1 MiB and sends zeros without end
)

// What a KDC that lies, or somebody in its place, can answer. RFC 4120, 3.1.5
// and 3.3.4 make the client compare; the tickets themselves are as they would
// be otherwise. The first ones apply to each AS-REP and TGS-REP.
const (
	WrongNonce  Mode = iota + 100 // of another request
	WrongClient                   // for the client root
	WrongServer                   // for the server HTTP/evil.example
	WrongRealm                    // for the server's name in the realm EVIL.TEST
	ShortKey                      // with a session key that lacks a byte
	WrongKey                      // sealed with a key of the right enctype that nobody has
	WrongType                     // a TGS-REP to an AS-REQ and an AS-REP to a TGS-REQ

	// These apply to the demand for pre-authentication.
	HugeIterations // s2kparams of 2^32-1 iterations in ETYPE-INFO2
	ManyPAData     // 10,000 unknown entries in METHOD-DATA before those that count
)

// streamOnly are the modes that a datagram cannot show.
var streamOnly = []Mode{HugeLength, HTTPServer, Flood, LongFlood}

var (
	garbage   = []byte("HTTP/1.1 400 Bad Request\r\n\r\n")
	httpError = []byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request")
)

// SetMode changes how the KDC behaves, for connections it has as well. It
// fails if a port cannot be had back after Refusing.
func (k *KDC) SetMode(mode Mode) error {
	return errors.Join(k.SetTCP(mode), k.SetUDP(mode))
}

// SetTCP is SetMode for TCP alone.
func (k *KDC) SetTCP(mode Mode) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tcp = mode
	switch {
	case mode == Refusing:
		k.hangUp()
	case k.listener == nil && !k.closed:
		ln, err := net.Listen("tcp", k.addr)
		if err != nil {
			return err
		}
		k.listenTCP(ln)
	}
	return nil
}

// SetUDP is SetMode for UDP alone.
func (k *KDC) SetUDP(mode Mode) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.udp = mode
	switch {
	case mode == Refusing || slices.Contains(streamOnly, mode):
		k.unbind()
	case k.packets == nil && !k.closed:
		packets, err := net.ListenPacket("udp", k.addr)
		if err != nil {
			return err
		}
		k.listenUDP(packets)
	}
	return nil
}

// SetUDPLimit sets the size in bytes, 4096 at first, up to which replies go over
// UDP. Instead of larger ones the KDC sends KRB_ERR_RESPONSE_TOO_BIG (RFC 4120,
// 7.2.1).
func (k *KDC) SetUDPLimit(bytes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.udpLimit = bytes
}

// Close ends the KDC and waits until nothing of it runs.
func (k *KDC) Close() {
	k.mu.Lock()
	k.closed = true
	k.hangUp()
	k.unbind()
	k.mu.Unlock()
	k.serving.Wait()
}

// hangUp must be called with the lock held.
func (k *KDC) hangUp() {
	if k.listener != nil {
		k.listener.Close()
		k.listener = nil
	}
	for conn := range k.conns {
		conn.Close()
	}
}

// unbind must be called with the lock held.
func (k *KDC) unbind() {
	if k.packets != nil {
		k.packets.Close()
		k.packets = nil
	}
}

// listenBoth finds a port of 127.0.0.1 that is free for TCP and UDP.
func listenBoth() (ln net.Listener, packets net.PacketConn, err error) {
	for range 20 {
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, nil, err
		}
		if packets, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			return ln, packets, nil
		}
		ln.Close()
	}
	return nil, nil, err
}

func (k *KDC) listenTCP(ln net.Listener) {
	k.listener = ln
	k.serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			k.mu.Lock()
			if k.listener == ln {
				k.conns[conn] = true
				k.serving.Go(func() { k.serve(conn) })
			} else {
				conn.Close()
			}
			k.mu.Unlock()
		}
	})
}

// listenUDP answers each datagram with one (RFC 4120, 7.2.1).
func (k *KDC) listenUDP(packets net.PacketConn) {
	k.packets = packets
	k.serving.Go(func() {
		datagram := make([]byte, 64<<10)
		for {
			n, client, err := packets.ReadFrom(datagram)
			if err != nil {
				return
			}
			k.mu.Lock()
			k.requests.UDP++
			mode, limit, now := k.udp, k.udpLimit, k.now
			k.mu.Unlock()
			var reply []byte
			switch mode {
			case Silent:
				continue
			case Garbage:
				reply = garbage
			default:
				if reply, err = k.answer(datagram[:n], mode); err != nil {
					continue
				}
				if len(reply) > limit {
					krbtgt := types.PrincipalName{NameString: []string{"krbtgt", k.realm}}
					tooBig := krbError(now(), errorcode.KRB_ERR_RESPONSE_TOO_BIG, k.realm, krbtgt, "")
					if reply, err = tooBig.Marshal(); err != nil {
						continue
					}
				}
				if mode == Truncating {
					reply = reply[:len(reply)/2]
				}
			}
			packets.WriteTo(reply, client)
		}
	})
}

// serve answers one request (RFC 4120, 7.2.2).
func (k *KDC) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		k.mu.Lock()
		delete(k.conns, conn)
		k.mu.Unlock()
	}()
	if k.tcpMode() == HTTPServer {
		if _, err := conn.Read(make([]byte, 4096)); err == nil {
			conn.Write(httpError)
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn) // else what is unread makes a reset of the end
		}
		return
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxMessage {
		return
	}
	request := make([]byte, n)
	if _, err := io.ReadFull(conn, request); err != nil {
		return
	}
	k.mu.Lock()
	k.requests.TCP++
	k.mu.Unlock()
	switch mode := k.tcpMode(); mode {
	case Silent:
		io.Copy(io.Discard, conn) // until somebody hangs up
	case Garbage:
		conn.Write(framed(garbage))
	case HugeLength:
		conn.Write([]byte{0xc0, 0, 0, 0})
		io.Copy(io.Discard, conn)
	case Flood, LongFlood:
		length := uint32(100)
		if mode == LongFlood {
			length = 1<<20 - 1
		}
		zeros := make([]byte, 64<<10)
		for _, err := conn.Write(binary.BigEndian.AppendUint32(nil, length)); err == nil; {
			_, err = conn.Write(zeros)
		}
	default:
		reply, err := k.answer(request, mode)
		if err != nil {
			return
		}
		reply = framed(reply)
		if mode == Truncating {
			reply = reply[:len(reply)/2]
		}
		conn.Write(reply)
	}
}

func (k *KDC) tcpMode() Mode {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tcp
}

func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// evil is what WrongServer and WrongRealm name.
var evil = struct {
	server []string
	realm  string
}{strings.Split("HTTP/evil.example", "/"), "EVIL.TEST"}
