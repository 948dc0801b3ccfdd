package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
	"github.com/sessionctl/sessionctl/store"
)

// drainTime is how long calls under way may still take after the end was asked
// for.
const drainTime = 10 * time.Second

// Options say where an agent keeps its things.
type Options struct {
	Config *Config
	// Load reads the configuration again; nil: a reload is refused.
	Load func() (*Config, error)
	// Reload asks for a reload with each value, as the RPC does.
	Reload <-chan struct{}
	// Store is the path of the store. Beside it, as PATH with ".key" for its
	// extension, lies the master key, unless systemd hands one over as the
	// credential "master", or Passphrase is set.
	Store string
	// Passphrase, if there is one, is that of the store, whose salt lies beside it, with
	// ".salt" for its extension (see store.KeyPassphrase). Run clears it.
	Passphrase []byte
	// Probe looks at the store before it is used, in another process; nil: nobody does
	// (see store.Options).
	Probe func(*os.File) error
	Log   *slog.Logger
	// Credentials, if it is not nil, is where systemd asks for the credentials of units.
	// Run closes it.
	Credentials net.Listener
	// Warnings of the start, for a person to look at, as those of Config.
	Warnings []string
	// Register, if it is not nil, adds further services.
	Register func(*grpc.Server)
}

// Run serves on a listener until the context ends, then finishes the calls
// under way and returns nil. It closes the listener.
func Run(ctx context.Context, l net.Listener, o Options) error {
	defer l.Close()
	if o.Credentials != nil {
		defer o.Credentials.Close()
	}

	key, warnings := masterKey(o.Store, o.Passphrase)
	warnings = append(slices.Clone(o.Warnings), warnings...)
	st, err := store.Mend(o.Store, store.Options{Key: key, Probe: o.Probe, Log: o.Log})
	clear(o.Passphrase)
	if err != nil {
		return err
	}
	defer st.Close()

	latches := keeper.NewLatches(st.Bucket("latches"), func(data ...[]byte) []byte { return st.MAC("latch", data...) })
	clock := keeper.NewClock()
	secrets := &secrets{
		latches: latches, records: private{st.Bucket("passwords")}, clock: clock,
		passwords: map[passwordKey]*keeper.Password{}, inURLs: map[string]web.ProxyPassword{},
		newEngine: func(c *krb.Config) *krb.Engine {
			return krb.New(krb.Options{Config: c, Records: private{st.Bucket("tickets")}, Latch: latches, Log: o.Log})
		},
	}
	defer secrets.close()
	secrets.configure(o.Config)
	sites, idps := o.Config.keeperSites(secrets)
	k := keeper.New(keeper.Options{Sites: sites, IdPs: idps, Records: private{st.Bucket("sessions")}, Lives: st.Bucket("lives"), Latches: latches, Log: o.Log, Clock: clock})
	defer k.Close()
	var mending sync.WaitGroup
	defer mending.Wait()
	ended := make(chan struct{})
	defer close(ended)
	mending.Go(func() {
		for {
			select {
			case <-st.Healed():
				k.Mended()
			case <-ended:
				return
			}
		}
	})

	srv := &service{
		config: o.Config, keeper: k, secrets: secrets, store: st, socket: l.Addr().String(), now: clock.Now,
		warnings: warnings, started: time.Now(), self: uint32(os.Geteuid()), log: o.Log, ending: make(chan struct{}),
		load: o.Load, turn: make(chan struct{}, 1), replaced: make(chan struct{}),
	}
	wire := newCodec()
	defer wire.stop()
	server := grpc.NewServer(append(wire.options(),
		grpc.Creds(peer.Credentials()),
		grpc.UnaryInterceptor(srv.intercept),
		grpc.StreamInterceptor(srv.interceptStream),
		grpc.ConnectionTimeout(2*time.Second),
		grpc.WaitForHandlers(true), // what they use is closed after them
		grpc.MaxRecvMsgSize(64<<10),
		grpc.MaxHeaderListSize(8<<10),
		grpc.MaxConcurrentStreams(64),
		grpc.NumStreamWorkers(16),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 5 * time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
	)...)
	pb.RegisterSessionServiceServer(server, srv)
	pb.RegisterTicketServiceServer(server, srv)
	pb.RegisterAgentServiceServer(server, srv)
	alive := health.NewServer()
	healthpb.RegisterHealthServer(server, alive)
	if o.Register != nil {
		o.Register(server)
	}

	for _, w := range append(warnings, o.Config.Warnings...) {
		o.Log.Warn(w)
	}
	o.Log.Info("the agent serves", "version", api.Version, "socket", srv.socket, "sites", len(o.Config.Sites), "store", o.Store)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	handing, giveUp := context.WithCancel(context.Background())
	var loading sync.WaitGroup
	defer loading.Wait()
	defer giveUp()
	if o.Credentials != nil {
		o.Log.Info("systemd can load sessions as credentials", "socket", o.Credentials.Addr().String())
		defer o.Credentials.Close()
		loading.Go(func() { srv.handOver(handing, o.Credentials, wire) })
	}
	notify(o.Log, sdnotify.SdNotifyReady)
	reloads, stop := context.WithCancel(ctx)
	var reloading sync.WaitGroup
	reloading.Go(func() { srv.reloads(reloads, o.Reload) })
	defer reloading.Wait()
	defer stop()

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	notify(o.Log, sdnotify.SdNotifyStopping)
	alive.Shutdown()
	close(srv.ending)
	timer := time.AfterFunc(drainTime, func() {
		giveUp()
		server.Stop()
	})
	if o.Credentials != nil {
		o.Credentials.Close() // who waits there asks the next agent, if systemd listens
	}
	server.GracefulStop()
	loading.Wait()
	timer.Stop()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	o.Log.Info("the agent has stopped")
	return nil
}

// masterKey says where the store's key comes from: a person, if one was asked for, else
// systemd, else a file.
func masterKey(path string, passphrase []byte) (key store.Key, warnings []string) {
	beside := strings.TrimSuffix(path, filepath.Ext(path))
	if len(passphrase) > 0 {
		return store.KeyPassphrase(beside+".salt", func() ([]byte, error) { return bytes.Clone(passphrase), nil }), nil
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "master")); err == nil {
			if _, err := os.Lstat(beside + ".key"); err == nil {
				warnings = append(warnings, "a key file still lies beside the store: if it holds the master key, which is the credential now, it protects nothing: rm "+beside+".key")
			}
			return store.KeyCredential(dir, "master"), warnings
		}
	}
	file := beside + ".key"
	return store.KeyFile(file), []string{"the master key lies in " + file + ": whoever can read both it and the store can read the sessions; leave it out of backups"}
}

func notify(log *slog.Logger, state string) {
	if _, err := sdnotify.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", "state", state, "err", err)
	}
}

// passwordFile returns the file in which systemd hands over the password of a
// credential, as LoadCredential=password.NAME; "" if there is none.
func passwordFile(credential string) string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	file := filepath.Join(dir, "password."+credential)
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}
