package rig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Samba is the KDC of Samba's Active Directory domain controller for one domain,
// on TCP and UDP on a free port of 127.0.0.1. Nothing else of the domain
// controller runs. Its tickets carry a PAC, whose size grows with the user's
// groups, and names of users are the same in any case. It needs what SambaNeeds
// names, but not root. Start and Stop must not be called at the same time.
type Samba struct {
	realm, addr, dir string
	process          *process // nil while stopped
}

// SambaNeeds names for Require what StartSamba needs.
func SambaNeeds() []string { return []string{"samba", "py_samba", sambaSetup} }

// sambaSetup is the schema from which a domain is made.
const sambaSetup = "/usr/share/samba/setup/ad-schema"

// StartSamba makes a domain without users of ours below dir, which must not hold
// one yet, and starts its KDC: four seconds of work. It returns when the KDC
// accepts connections. The realm is a DNS name in capitals, such as AD.TEST; its
// first label, at most 15 characters, is the domain's NetBIOS name. The path of
// dir may have 90 characters.
func StartSamba(ctx context.Context, dir, realm string) (*Samba, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// The path of a Unix socket, here dir/msg.sock/1234567, has 107 at most.
	if len(dir) > 90 {
		return nil, fmt.Errorf("%s is longer than 90 characters, too long for Samba's sockets", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "smb.conf")); err == nil {
		return nil, fmt.Errorf("a domain is in %s already", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	passwordPort, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Samba{realm: realm, addr: loopback(port), dir: dir}
	domain, _, _ := strings.Cut(realm, ".")
	if err := (Krb5Conf{Realms: []Realm{s}}).WriteFile(s.Krb5ConfFile()); err != nil {
		return nil, err
	}
	for _, name := range []string{"smb.conf", "samba.py"} {
		if err := writeTemplate(filepath.Join(dir, name), name, map[string]any{
			"Realm": realm, "Domain": domain, "Dir": dir, "Port": port, "PasswordPort": passwordPort,
		}); err != nil {
			return nil, err
		}
	}
	if err := s.admin(ctx, "provision", nil); err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Realm returns the realm's name. Host localhost belongs to it.
func (s *Samba) Realm() string { return s.realm }

// Addr returns the KDC's host:port.
func (s *Samba) Addr() string { return s.addr }

// Dir returns the directory of the database, the configuration and the log.
func (s *Samba) Dir() string { return s.dir }

// Krb5ConfFile returns the path of a krb5.conf for clients of the realm.
func (s *Samba) Krb5ConfFile() string { return filepath.Join(s.dir, "krb5.conf") }

// Env returns the variables that let kinit, curl and other users of libkrb5 find
// the realm, and a ticket cache in Dir.
func (s *Samba) Env() []string { return clientEnv(s.dir) }

// Start starts the KDC after Stop, with the same database on the same port.
func (s *Samba) Start(ctx context.Context) error {
	if s.process != nil {
		return errors.New("samba runs already")
	}
	program, err := find("samba")
	if err != nil {
		return err
	}
	// One process, so that none is left when the kernel kills it.
	cmd := exec.Command(program, "-i", "-M", "single", "--debug-stdout", "-s", s.smbConf())
	cmd.Env = s.adminEnv()
	p, err := startProcess("samba", cmd, s.log())
	if err != nil {
		return err
	}
	if err := p.ready(ctx, filepath.Join(s.dir, "samba.pid"), s.addr); err != nil {
		return err
	}
	s.process = p
	return nil
}

// Stop ends the KDC: connections are refused until Start. Without a running KDC
// it does nothing.
func (s *Samba) Stop() {
	if s.process != nil {
		s.process.stop()
		s.process = nil
	}
}

// AddPrincipal adds a user with this password.
func (s *Samba) AddPrincipal(ctx context.Context, name, password string, attributes ...Attribute) error {
	return s.add(ctx, name, "", password, attributes)
}

// AddService adds a user with a random password and AES keys that has the SPN,
// such as HTTP/localhost. As with any SPN of Active Directory, tickets are for it,
// but it cannot get any itself.
func (s *Samba) AddService(ctx context.Context, spn string, attributes ...Attribute) error {
	// Names of users are short and have no slash.
	return s.add(ctx, fmt.Sprintf("svc-%.8x", sha256.Sum256([]byte(spn))), spn, "", attributes)
}

func (s *Samba) add(ctx context.Context, name, spn, password string, attributes []Attribute) error {
	arguments, err := change(attributes)
	if err != nil {
		return err
	}
	arguments["name"], arguments["spn"], arguments["password"] = name, spn, password
	return s.admin(ctx, "add", arguments)
}

// Modify changes the attributes of a user, or of the one that has the SPN.
func (s *Samba) Modify(ctx context.Context, name string, attributes ...Attribute) error {
	arguments, err := change(attributes)
	if err != nil {
		return err
	}
	arguments["name"] = name
	return s.admin(ctx, "modify", arguments)
}

// What an Attribute is in Active Directory: bits of userAccountControl ([MS-ADTS]
// 2.2.16) that are set and cleared, and other values of the account. NoPreauth is
// missing, because Samba 4.17 asks for pre-authentication all the same.
var accountChanges = map[Attribute]struct {
	on, off int
	values  map[string]string
}{
	Disabled:        {on: 0x2},
	Enabled:         {off: 0x2},
	Expired:         {values: map[string]string{"accountExpires": "132223104000000000"}}, // 2020-01-01, [MS-DTYP] 2.3.3
	NotExpired:      {values: map[string]string{"accountExpires": "0"}},
	PasswordExpired: {values: map[string]string{"pwdLastSet": "0"}},
	PasswordValid:   {values: map[string]string{"pwdLastSet": "-1"}},
	// Bits of [MS-KILE] 2.2.7. They restrict the tickets for an account, but not what
	// its user can log in with.
	AES256Only: {values: map[string]string{"msDS-SupportedEncryptionTypes": "16"}},
	AES128Only: {values: map[string]string{"msDS-SupportedEncryptionTypes": "8"}},
	RC4Only:    {values: map[string]string{"msDS-SupportedEncryptionTypes": "4"}},
}

// change returns the arguments that tell samba.py about the attributes.
func change(attributes []Attribute) (map[string]any, error) {
	var on, off int
	values := make(map[string]string)
	for _, attribute := range attributes {
		c, ok := accountChanges[attribute]
		if !ok {
			return nil, fmt.Errorf("accounts of Samba have no attribute %q", attribute)
		}
		on, off = on&^c.off|c.on, off&^c.on|c.off
		for name, value := range c.values {
			values[name] = value
		}
	}
	return map[string]any{"on": on, "off": off, "values": values}, nil
}

// AddGroups makes a user a member of n more groups, which makes the PAC in the
// user's tickets bigger: with 1000 groups a token has 12 kB.
func (s *Samba) AddGroups(ctx context.Context, user string, n int) error {
	return s.admin(ctx, "add_groups", map[string]any{"name": user, "number": n})
}

// Rekey gives a user, or the one that has the SPN, a new password, at random if it
// is empty, and thereby new keys with the next key version. Keytabs written before
// hold the old ones.
func (s *Samba) Rekey(ctx context.Context, name, password string) error {
	return s.admin(ctx, "rekey", map[string]any{"name": name, "password": password})
}

// Delete removes a user, or the one that has the SPN.
func (s *Samba) Delete(ctx context.Context, name string) error {
	return s.admin(ctx, "delete", map[string]any{"name": name})
}

// Keytab adds the present keys of the named users and SPNs to the keytab file at
// path, which is made with mode 0600 if it is missing. The keys stay as they are.
func (s *Samba) Keytab(ctx context.Context, path string, names ...string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	return s.admin(ctx, "keytab", map[string]any{"path": path, "names": names})
}

// What Samba 4.17 writes to its log at level 3 for each request, before it answers:
//
//	Kerberos: AS-REQ ERR_PREAUTH_REQUIRED ipv4:127.0.0.1:46388 svc@R krbtgt/R@R …
//	Kerberos: AS-REQ SUCCESS ipv4:127.0.0.1:56146 svc@R krbtgt/R@R …
//	Kerberos: TGS-REQ SUCCESS ipv4:127.0.0.1:60924 svc@R HTTP/h@R …
var sambaLogged = regexp.MustCompile(`(?m)^Kerberos: (AS|TGS)-REQ (\S+) ipv4:`)

// Counts returns what the KDC was asked since it was made. Whatever a client has
// had an answer for is counted. Renewed and Referrals are not: the log does not tell.
func (s *Samba) Counts() (Counts, error) {
	log, err := os.ReadFile(s.log())
	if err != nil {
		return Counts{}, err
	}
	var c Counts
	for _, m := range sambaLogged.FindAllSubmatch(log, -1) {
		exchange, result := string(m[1]), string(m[2])
		switch {
		case exchange == "AS":
			c.AS++
			switch result {
			case "SUCCESS":
				c.ASTGT++
			case "ERR_PREAUTH_FAILED":
				c.PreauthFailed++
			}
		case result == "SUCCESS":
			c.TGS++
		}
	}
	return c, nil
}

// admin has samba.py do one thing.
func (s *Samba) admin(ctx context.Context, do string, arguments map[string]any) error {
	request := map[string]any{"do": do}
	for name, value := range arguments {
		request[name] = value
	}
	input, err := json.Marshal(request)
	if err != nil {
		return err
	}
	// -I keeps the directory of the script, whose name is that of Samba's package,
	// from being searched for packages.
	cmd := exec.CommandContext(ctx, python, "-I", filepath.Join(s.dir, "samba.py"), s.smbConf())
	cmd.Env = s.adminEnv()
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		// The last line says it, what stands before is where in the script it was.
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return fmt.Errorf("samba.py: %s: %w: %s", do, err, lines[len(lines)-1])
	}
	return nil
}

func (s *Samba) adminEnv() []string {
	// Samba's Kerberos library reads a krb5.conf as well, which must not be the
	// machine's. The database need not outlive a crash of the machine.
	return environment("KRB5_CONFIG="+s.Krb5ConfFile(), "TDB_NO_FSYNC=1")
}

func (s *Samba) smbConf() string { return filepath.Join(s.dir, "smb.conf") }

func (s *Samba) log() string { return filepath.Join(s.dir, "samba.out") }
