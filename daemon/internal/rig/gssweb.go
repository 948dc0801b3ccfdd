package rig

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// GSSWeb is a web server that checks channel bindings, which Apache's modules
// cannot: Python's HTTPS server (TLS 1.2 and 1.3) with MIT's GSSAPI, on a free
// port of 127.0.0.1, under the name localhost. It needs py_gssapi, but not root.
//
// All its pages are below /cbt/ and want Negotiate, then the session cookie
// cbt_session. A token with other bindings than tls-server-end-point (RFC 5929) of
// the server's certificate is refused. /cbt/whoami tells of the login as JSON:
//
//	{"user": "svc@REALM", "bound": true, "flags": 2466}
//
// bound says that the client has sent the right bindings; flags are GSSAPI's
// flags of the context (RFC 2744, 5.19; 0x800 is MIT's GSS_C_CHANNEL_BOUND_FLAG).
type GSSWeb struct {
	dir     string
	port    int
	process *process // nil after Stop
}

// GSSWebOptions says how GSSWeb is to run.
type GSSWebOptions struct {
	// Krb5ConfFile and KeytabFile are paths.
	Krb5ConfFile, KeytabFile string
	// SPN is the service that tickets must be for, such as HTTP/localhost.
	SPN string
	// RequireBindings refuses tokens without bindings. Otherwise they are good, as
	// RFC 2744, 4.1 leaves it to the acceptor.
	RequireBindings bool
	// Signature is how the server's certificate is signed: SHA256WithRSA (also 0),
	// SHA512WithRSA, SHA384WithRSAPSS, ECDSAWithSHA256, ECDSAWithSHA384 or
	// SHA1WithRSA. The bindings depend on it.
	Signature x509.SignatureAlgorithm
}

// endPointHashes are the signatures of certificates that GSSWeb knows, and the
// hash that tls-server-end-point takes of them, by Python's name: that of the
// signature, and SHA-256 in place of SHA-1 (RFC 5929, 4.1).
var endPointHashes = map[x509.SignatureAlgorithm]string{
	x509.SHA1WithRSA:      "sha256",
	x509.SHA256WithRSA:    "sha256",
	x509.SHA512WithRSA:    "sha512",
	x509.SHA384WithRSAPSS: "sha384",
	x509.ECDSAWithSHA256:  "sha256",
	x509.ECDSAWithSHA384:  "sha384",
}

// StartGSSWeb starts the server with all its files below dir, and returns when it
// accepts connections. Started by root, it runs as nobody, with dir as StartApache
// has it.
func StartGSSWeb(ctx context.Context, dir string, options GSSWebOptions) (*GSSWeb, error) {
	if options.Signature == 0 {
		options.Signature = x509.SHA256WithRSA
	}
	hash, ok := endPointHashes[options.Signature]
	if !ok {
		return nil, fmt.Errorf("no hash of certificates signed with %v is known", options.Signature)
	}
	program, err := find("py_gssapi")
	if err != nil {
		return nil, err
	}
	dir, owner, err := ownDir(dir)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	w := &GSSWeb{dir: dir, port: port}
	if err := writeLocalhostCertificate(w.CAFile(), filepath.Join(dir, "tls.pem"), options.Signature); err != nil {
		return nil, err
	}
	script, err := templateFiles.ReadFile("templates/gssweb.py")
	if err != nil {
		return nil, err
	}
	scriptFile := filepath.Join(dir, "gssweb.py")
	if err := os.WriteFile(scriptFile, script, 0o600); err != nil {
		return nil, err
	}
	krb5Conf := filepath.Join(dir, "krb5.conf")
	if err := copyFile(krb5Conf, options.Krb5ConfFile); err != nil {
		return nil, err
	}
	if err := copyFile(filepath.Join(dir, "http.keytab"), options.KeytabFile); err != nil {
		return nil, err
	}
	if err := giveAway(dir, owner); err != nil {
		return nil, err
	}
	require := "0"
	if options.RequireBindings {
		require = "1"
	}
	cmd := exec.Command(program, scriptFile, dir, strconv.Itoa(port), options.SPN, hash, require)
	cmd.Env = environment("KRB5_CONFIG="+krb5Conf, "KRB5RCACHEDIR="+dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	p, err := startProcess("gssweb.py", cmd, filepath.Join(dir, "gssweb.out"))
	if err != nil {
		return nil, err
	}
	if err := p.ready(ctx, filepath.Join(dir, "gssweb.pid"), loopback(port)); err != nil {
		return nil, err
	}
	w.process = p
	return w, nil
}

// URL returns https://localhost:port, without a slash at its end.
func (w *GSSWeb) URL() string { return "https://localhost:" + strconv.Itoa(w.port) }

// CAFile returns the path of the certificates (PEM) that vouch for URL: the
// authority's and the server's own, because many clients no longer accept an
// authority's word that is signed with SHA-1. Those of OpenSSL still do so only at
// security level 0.
func (w *GSSWeb) CAFile() string { return filepath.Join(w.dir, "ca.pem") }

// Dir returns the directory of the server's files and its log.
func (w *GSSWeb) Dir() string { return w.dir }

// Stop ends the server. When it has ended it does nothing.
func (w *GSSWeb) Stop() {
	if w.process != nil {
		w.process.stop()
		w.process = nil
	}
}
