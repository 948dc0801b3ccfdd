package daemon

import (
	"context"
	"slices"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"

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
	}
	defer func() { <-s.turn }()
	// What systemd wants to hear of a Type=notify-reload (sd_notify(3)).
	notify(s.log, sdnotify.SdNotifyReloading+"\n"+sdnotify.SdNotifyMonotonicUsec())
	defer notify(s.log, sdnotify.SdNotifyReady)

	config, err := s.load()
	if err != nil {
		refused := api.AsError(err)
		s.log.Error("the configuration is wrong, the old one stays in use", "code", refused.Code, "detail", refused.Detail)
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
	for _, p := range config.Problems(ctx) {
		if ctx.Err() != nil {
			break // it is one of the caller's time
		}
		resp.Warnings = append(resp.Warnings, bounded(p.Error(), maxDetail))
	}
	for _, w := range resp.GetWarnings() {
		s.log.Warn(w)
	}
	return resp, nil
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

// changes compares the sites of two configurations, both in the order of their
// names.
func changes(old, config *Config) *pb.ReloadResponse {
	resp := &pb.ReloadResponse{}
	find := func(c *Config, name string) *Site {
		if i := slices.IndexFunc(c.Sites, func(s *Site) bool { return s.Name == name }); i >= 0 {
			return c.Sites[i]
		}
		return nil
	}
	for _, s := range config.Sites {
		switch was := find(old, s.Name); {
		case was == nil:
			resp.Added = append(resp.Added, s.Name)
		case was.setup != s.setup:
			resp.Changed = append(resp.Changed, s.Name)
		}
	}
	for _, s := range old.Sites {
		if find(config, s.Name) == nil {
			resp.Removed = append(resp.Removed, s.Name)
		}
	}
	return resp
}
