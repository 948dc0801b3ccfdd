package ccache

import (
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const service = "HTTP/www.example"

// realm is MIT's KDC and its command-line tools, as users have them.
type realm struct {
	kdc  *rig.MITKDC
	dir  string
	conf string // contents of krb5.conf
}

// newRealm makes CCACHE.TEST with alice, bob and two services.
func newRealm(t *testing.T) *realm {
	t.Helper()
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "kinit", "kvno")
	dir := t.TempDir()
	k, err := rig.StartMIT(t.Context(), filepath.Join(dir, "kdc"), alice.Realm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	conf, err := os.ReadFile(k.Krb5ConfFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		k.Modify(t.Context(), "krbtgt/"+alice.Realm, "-maxrenewlife 7days"),
		k.AddPrincipal(t.Context(), "alice", "CANARY-password", "-maxrenewlife 7days"),
		k.AddPrincipal(t.Context(), "bob", "CANARY-password", "-maxrenewlife 7days"),
		k.AddService(t.Context(), service),
		k.AddService(t.Context(), "HTTP/new.example"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return &realm{k, dir, string(conf)}
}

// configure adds lines to [libdefaults] of krb5.conf.
func (r *realm) configure(t *testing.T, lines string) {
	t.Helper()
	write(t, r.kdc.Krb5ConfFile(), []byte(strings.Replace(r.conf, "[libdefaults]\n", "[libdefaults]\n"+lines+"\n", 1)))
}

// try runs a tool with cache as its default cache.
func (r *realm) try(ctx context.Context, cache, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "KRB5_CONFIG=" + r.kdc.Krb5ConfFile(), "KRB5CCNAME=" + cache}
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *realm) run(t *testing.T, cache, name string, args ...string) string {
	t.Helper()
	out, err := r.try(t.Context(), cache, "", name, args...)
	if err != nil {
		t.Fatalf("%s %q with %s: %v: %s", name, args, cache, err, out)
	}
	return out
}

// kinit gets a renewable, forwardable TGT.
func (r *realm) kinit(t *testing.T, cache, user string) {
	t.Helper()
	if out, err := r.try(t.Context(), cache, "CANARY-password\n", "kinit", "-f", "-r", "7d", user); err != nil {
		t.Fatalf("kinit %s into %s: %v: %s", user, cache, err, out)
	}
}

// loginAndLoad puts alice's TGT and a service ticket into a cache, and checks
// what comes out of it.
func (r *realm) loginAndLoad(t *testing.T, name string, load func(name string, client Principal) (*Cache, error)) *Cache {
	t.Helper()
	r.kinit(t, name, "alice")
	r.run(t, name, "kvno", service)
	c, err := load(name, alice)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Credentials) != 2 || c.Offset.Abs() > time.Second {
		t.Fatalf("%s: %v", name, c)
	}
	// In a keyring they have no order.
	slices.SortFunc(c.Credentials, func(a, b Credential) int { return -strings.Compare(a.Server.String(), b.Server.String()) })
	for i, server := range []string{"krbtgt/" + alice.Realm, service} {
		const forwardable, renewable = 1 << 30, 1 << 23
		cred, now := c.Credentials[i], time.Now()
		if cred.Server.String() != server+"@"+alice.Realm || !cred.Client.equal(alice) || cred.KeyType != 18 || len(cred.Key) != 32 ||
			cred.Flags&forwardable == 0 || cred.Flags&renewable == 0 ||
			len(cred.Ticket) < 100 || cred.Ticket[0] != 0x61 || // [APPLICATION 1]
			now.Sub(cred.AuthTime).Abs() > time.Minute || cred.EndTime.Sub(now).Abs() > 10*time.Hour || cred.RenewTill.Sub(now) < 6*24*time.Hour {
			t.Errorf("%s: %v, flags %x, %d bytes of key, from %s, renewable until %s", name, cred, cred.Flags, len(cred.Key), cred.AuthTime, cred.RenewTill)
		}
	}
	_, err = load(name, Principal{Realm: alice.Realm, Components: []string{"carol"}})
	unusable(t, err, "carol", "alice@CCACHE.TEST")
	return c
}

func TestMITFiles(t *testing.T) {
	r := newRealm(t)
	load := func(name string, client Principal) (*Cache, error) { return Load(t.Context(), name, client) }
	klist := func(name string) string {
		_, list, _ := strings.Cut(r.run(t, name, "klist", "-ef"), "\n") // without the cache's name
		return list
	}
	for version := 1; version <= 4; version++ {
		r.configure(t, "ccache_type = "+strconv.Itoa(version))
		path := filepath.Join(r.dir, "krb5cc"+strconv.Itoa(version))
		c := r.loginAndLoad(t, "FILE:"+path, load)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if b[1] != byte(version) {
			t.Errorf("kinit wrote version %d instead of %d", b[1], version)
		}
		damage(t, b)

		// What we write, MIT's tools take for what they wrote themselves.
		ours := path + ".ours"
		write(t, ours, encode(t, c))
		if want, got := klist(path), klist(ours); got != want {
			t.Errorf("version %d: klist says\n%s\nand of ours\n%s", version, want, got)
		}
		r.run(t, ours, "kvno", service, "HTTP/new.example")
		if c := loads(t, ours, alice); len(c.Credentials) != 3 {
			t.Errorf("after kvno: %v", c)
		}
		r.run(t, ours, "kinit", "-R")
		if renewed := loads(t, ours, alice); len(renewed.Credentials) != 1 || bytes.Equal(renewed.Credentials[0].Ticket, c.Credentials[0].Ticket) {
			t.Errorf("after kinit -R: %v", renewed)
		}
	}
	r.configure(t, "")

	// The offset is the KDC's clock minus ours: with one that is wrong by more
	// than the allowed skew, MIT's client asks at the wrong time.
	c := loads(t, filepath.Join(r.dir, "krb5cc4"), alice)
	for _, offset := range []time.Duration{10 * time.Minute, -10 * time.Minute, time.Second} {
		c.Offset = offset
		path := filepath.Join(r.dir, "skewed")
		write(t, path, encode(t, c))
		out, err := r.try(t.Context(), path, "", "kvno", "HTTP/new.example")
		if fails := offset.Abs() > 5*time.Minute; fails != (err != nil) || fails && !strings.Contains(out, "skew") {
			t.Errorf("offset %s: %v: %s", offset, err, out)
		}
	}

	dir := filepath.Join(r.dir, "collection")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.loginAndLoad(t, "DIR:"+dir, load)
	r.kinit(t, "DIR:"+dir, "bob") // into a new file, which becomes the primary one
	loads(t, "DIR:"+dir, alice)
	loads(t, "DIR:"+dir, bob)
	loads(t, "DIR::"+filepath.Join(dir, "tkt"), alice)
	r.run(t, "DIR:"+dir, "kdestroy") // the primary one
	_, err := load("DIR:"+dir, bob)
	unusable(t, err, "alice@CCACHE.TEST")
}

func TestMITKeyrings(t *testing.T) {
	r := newRealm(t)
	// A session keyring of this thread's own, which its children get. The thread
	// ends with the test, because it stays locked.
	runtime.LockOSThread()
	rig.Require(t, "keyrings")
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	load := func(name string, client Principal) (*Cache, error) { return Load(t.Context(), name, client) }
	destroy := func(cache string, args ...string) {
		t.Cleanup(func() {
			if out, err := r.try(context.Background(), cache, "", "kdestroy", args...); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	// The user's own keyring is that of everything else the user runs.
	unique := "sessionctl-test-" + rand.Text()
	t.Cleanup(func() {
		id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "keyring", collectionPrefix+unique, 0)
		if err == nil {
			_, err = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_USER_KEYRING, 0, 0)
		}
		if err != nil {
			t.Errorf("remove the collection: %v", err)
		}
	})
	for name, first := range map[string]string{
		"KEYRING:session:s":      "KEYRING:session:s:s",
		"KEYRING:l":              "KEYRING:legacy:l:l",
		"KEYRING:user:" + unique: "KEYRING:user:" + unique + ":" + unique,
	} {
		_, err := load(name, alice)
		unusable(t, err, "not there", "kinit -c FILE:")
		r.loginAndLoad(t, name, load)
		destroy(name, "-A")
		_, err = load(first, bob)
		unusable(t, err, "alice@CCACHE.TEST")
		_, err = load(first+"none", bob)
		unusable(t, err, "none")
	}
	// Several caches, and the primary one first. In one place only: the kernel
	// allows an ordinary user 20 kB of keys.
	name := "KEYRING:user:" + unique
	r.kinit(t, name, "bob") // into a new cache, which becomes the primary one
	loads(t, name, bob)
	loads(t, name, alice)
	first, second := name+":"+unique, name+":second"
	r.kinit(t, second, "alice")
	for _, primary := range []string{first, second} {
		r.run(t, name, "kswitch", "-c", primary)
		if got, want := loads(t, name, alice), loads(t, primary, alice); !reflect.DeepEqual(got, want) {
			t.Errorf("%s instead of %s: %v", name, primary, got)
		}
	}
	persistent := "KEYRING:persistent:" + strconv.Itoa(os.Geteuid())
	r.loginAndLoad(t, persistent+":"+unique, load)
	destroy(persistent + ":" + unique)
	loads(t, persistent, alice)
	loads(t, "KEYRING:persistent:", alice)

	// A ticket larger than most, by the names that kinit has used above.
	large := sample(alice)
	large.Credentials[0].Ticket = bytes.Repeat([]byte("CANARY-ticket"), 330)
	principal, credentials := payloads(large)
	add := func(kind, name string, payload []byte, ring int) int {
		id, err := unix.AddKey(kind, name, payload, ring)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ring := add("keyring", "big", nil, add("keyring", "_krb_big", nil, unix.KEY_SPEC_SESSION_KEYRING))
	add("user", "__krb5_princ__", principal, ring)
	add("user", "__krb5_time_offsets__", []byte{0, 0, 2, 88, 0, 0, 0, 0}, ring)
	add("user", "krbtgt", credentials[0], ring)
	large.Credentials, large.Offset = large.Credentials[:1], 10*time.Minute
	if got := loads(t, "KEYRING:session:big", alice); !reflect.DeepEqual(got, large) {
		t.Errorf("%v", got)
	}
	add("user", "krbtgt", credentials[0][:4000], ring)
	_, err := load("KEYRING:session:big", alice)
	unusable(t, err, "malformed")

	// Nothing is left with this thread, nor kept from others.
	if b, err := (&keyrings{left: maxSize}).list(unix.KEY_SPEC_THREAD_KEYRING); err != nil || len(b) != 0 {
		t.Errorf("the thread has the keys %x, %v", b, err)
	}
}

// sssdKCM is not in any PATH.
const sssdKCM = "/usr/libexec/sssd/sssd_kcm"

// kcmScript starts sssd's KCM daemon below an empty /etc/sssd, /var/lib/sss and
// /var/log/sssd of its own. $1 is the socket.
const kcmScript = `set -e
mount --make-rprivate /
for dir in /etc/sssd /var/lib/sss /var/log/sssd; do mount -t tmpfs -o mode=0700 tmpfs "$dir"; done
mkdir /etc/sssd/conf.d /var/lib/sss/db /var/lib/sss/secrets
chmod 0700 /var/lib/sss/secrets
(umask 077; printf '[sssd]\nservices =\ndomains =\n[kcm]\nsocket_path = %s\n' "$1" >/etc/sssd/sssd.conf)
sssd --genconf-section=kcm
exec ` + sssdKCM + ` --uid 0 --gid 0 --logger=stderr
`

func TestSSSDKCM(t *testing.T) {
	r := newRealm(t)
	rig.Require(t, "root", "mount", sssdKCM)
	socket := filepath.Join(r.dir, "kcm.socket")
	r.configure(t, "kcm_socket = "+socket)
	// The kernel ends the daemon with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("sh", "-c", kcmScript, "kcm", socket)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, or else its output says why
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error means that it has ended already
		<-ended
	})
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			break
		}
		select {
		case <-poll.C:
		case <-ended:
			t.Fatalf("sssd_kcm ended at once: %s", output.String())
		case <-t.Context().Done():
			t.Fatal("sssd_kcm does not answer")
		}
	}

	load := func(name string, client Principal) (*Cache, error) { return load(t.Context(), name, client, socket) }
	_, err := load("KCM:", alice)
	unusable(t, err, "nothing is there", "kinit -c KCM: alice@CCACHE.TEST")
	c := r.loginAndLoad(t, "KCM:", load)
	path := filepath.Join(r.dir, "ours")
	write(t, path, encode(t, c))
	r.run(t, path, "kvno", service, "HTTP/new.example")
	r.kinit(t, "KCM:", "bob") // into a new cache, which becomes the default one
	for _, client := range []Principal{alice, bob} {
		if _, err := load("KCM:", client); err != nil {
			t.Error(err)
		}
	}
	r.kinit(t, "KCM:0:another", "alice")
	if _, err := load("KCM:0:another", alice); err != nil {
		t.Error(err)
	}
	_, err = load("KCM:0:another", bob)
	unusable(t, err, "alice@CCACHE.TEST")
	_, err = load("KCM:0:none", bob)
	unusable(t, err, "no such cache")
}
