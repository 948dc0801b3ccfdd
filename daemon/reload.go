package daemon

import (
	"context"
	"slices"
	"sync"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// Reload implements AgentService.
func (s *service) Reload(ctx context.Context, _ *pb.ReloadRequest) (*pb.ReloadResponse, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if !s.operator(c) {
		return nil, &api.Error{Code: api.Denied, Detail: "only the agent's own user and root may reload its configuration", Remedy: "ask whoever runs the agent"}
	}
	return s.reload(ctx)
}

// reloads reloads with each value of a channel, until the context ends.
func (s *service) reloads(ctx context.Context, asked <-chan struct{}) {
	for {
		select {
		case _, open := <-asked:
			if !open {
				return
			}
			limited, cancel := context.WithTimeout(ctx, maxDeadline)
			_, _ = s.reload(limited) // the log and the status say how it went
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

// reload reads the configuration again and applies it. One that is wrong changes
// nothing.
func (s *service) reload(ctx context.Context) (*pb.ReloadResponse, error) {
	if s.load == nil {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "this agent cannot read its configuration again", Remedy: "restart it"}
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, &api.Error{Code: api.Deadline, Detail: "another reload is still under way", Remedy: "try again", Err: ctx.Err()}
	case <-s.ending:
		return nil, errStopping
	}
	var reading sync.WaitGroup
	defer func() {
		go func() {
			reading.Wait() // also for what is left: there is never more than that
			<-s.turn
		}()
	}()
	// What systemd wants to hear of a Type=notify-reload (sd_notify(3)).
	notify(s.log, sdnotify.SdNotifyReloading+"\n"+sdnotify.SdNotifyMonotonicUsec())
	defer notify(s.log, sdnotify.SdNotifyReady)

	var config *Config
	if err := s.within(ctx, &reading, func() (err error) { config, err = s.load(); return err }); err != nil {
		if err == errStopping {
			return nil, err
		}
		refused := api.AsError(err)
		s.log.Error("the configuration cannot be loaded, the old one stays in use", "code", refused.Code, "detail", refused.Detail)
		s.mu.Lock()
		s.refused = refused
		s.mu.Unlock()
		return nil, refused
	}
	old := s.apply(config)
	resp := changes(old, config)
	s.log.Info("the configuration was reloaded", "sites", len(config.Sites), "added", resp.GetAdded(), "changed", resp.GetChanged(), "removed", resp.GetRemoved())
	for _, n := range config.Notes {
		s.log.Info(n)
	}
	for _, w := range config.Warnings {
		resp.Warnings = append(resp.Warnings, bounded(w, maxDetail))
	}
	var problems []error
	if err := s.within(ctx, &reading, func() error { problems = config.Problems(ctx); return ctx.Err() }); err != nil {
		resp.Warnings = append(resp.Warnings, "keytabs and ticket caches could not all be looked at in time")
	} else {
		for _, p := range problems {
			resp.Warnings = append(resp.Warnings, bounded(p.Error(), maxDetail))
		}
	}
	for _, w := range resp.GetWarnings() {
		s.log.Warn(w)
	}
	return resp, nil
}

// errStopping is no failure of what was asked for: the caller is to come back.
var errStopping = status.Error(codes.Unavailable, "the agent is stopping")

// within does a part of a reload that reads files, each of which may hang, and
// leaves it at the end of the context or of the agent.
func (s *service) within(ctx context.Context, reading *sync.WaitGroup, read func() error) error {
	end := make(chan error, 1)
	reading.Go(func() {
		var err error
		defer func() { end <- err }()
		defer s.caught("Reload", &err)
		err = read()
	})
	select {
	case err := <-end:
		return err
	case <-ctx.Done():
		return &api.Error{Code: api.Deadline, Detail: "the files of the configuration could not be read in time", Remedy: "see whether they, and krb5.conf, can be read at all; then: sessionctl reload", Err: ctx.Err()}
	case <-s.ending:
		return errStopping
	}
}

// apply puts a configuration into use, at once for all callers, and returns the
// one before.
func (s *service) apply(config *Config) (old *Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets.configure(config)
	s.keeper.Reconfigure(config.keeperSites(s.secrets))
	old, s.config, s.refused = s.config, config, nil
	close(s.replaced)
	s.replaced = make(chan struct{})
	return old
}

// changes compares two configurations: their sites, by name, and then their
// identity providers, as "idp NAME".
func changes(old, config *Config) *pb.ReloadResponse {
	resp := &pb.ReloadResponse{}
	compare := func(prefix string, old, sites []*Site) {
		find := func(all []*Site, name string) *Site {
			if i := slices.IndexFunc(all, func(s *Site) bool { return s.Name == name }); i >= 0 {
				return all[i]
			}
			return nil
		}
		for _, s := range sites {
			switch was := find(old, s.Name); {
			case was == nil:
				resp.Added = append(resp.Added, prefix+s.Name)
			case was.setup != s.setup:
				resp.Changed = append(resp.Changed, prefix+s.Name)
			}
		}
		for _, s := range old {
			if find(sites, s.Name) == nil {
				resp.Removed = append(resp.Removed, prefix+s.Name)
			}
		}
	}
	compare("", old.Sites, config.Sites)
	compare("idp ", old.idps, config.idps)
	return resp
}
