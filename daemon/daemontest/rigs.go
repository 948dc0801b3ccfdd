package daemontest

import (
	"context"
	"net"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// The rigs are of types that cannot be named outside; their methods are shown
// by, for one: go doc github.com/sessionctl/sessionctl/daemon/internal/rig.Atlassian
//
// Each serves on a free port of 127.0.0.1 under the name localhost, or one below
// it, until it is closed or stopped. What it imitates, and by which public source,
// its methods say.
type (
	// KDC is a Kerberos KDC for one realm: AddPrincipal, AddService, Keytab,
	// Krb5Conf, SetMode, Counts, Close.
	KDC = rig.KDC
	// Atlassian is a Jira, Confluence, Bitbucket, Bamboo or Crucible, with a gate that
	// asks for Negotiate if it is told so: AddUser, AddToken, SetPassword,
	// DropSessions, SolveCaptcha, SetModes, Upgrade, Counts, Hits, URL, Stop, Start.
	Atlassian = rig.Atlassian
	// Crowd is an Atlassian Crowd: AddUser, AddApplication, KillToken, Fail, Tokens,
	// Counts, CountsOf, Hits, URL, Stop, Start.
	Crowd = rig.Crowd
	// App is a web site behind Negotiate, as Apache's mod_auth_gssapi makes it:
	// ForgetSessions, Hits, URL, Stop, Start.
	App = rig.Site
	// Form is a web site with a classic login form: AddUser, DropSessions, Counts,
	// Hits, URL, Stop, Start.
	Form = rig.Form
	// Jazz is a server of IBM's Engineering Lifecycle Management with its
	// applications, and a Jazz Authorization Server if it is told so: AddUser,
	// AddAppPassword, Set, DropSessions, DropApps, Counts, Hits, URL, JASURL, Stop,
	// Start.
	Jazz = rig.Jazz
	// Proxy is a forward proxy for http and https: Refuse, Counts, Connections, URL,
	// Close.
	Proxy = rig.Proxy
)

// What goes into them, and what they count.
type (
	// AtlassianOptions are the settings of an Atlassian.
	AtlassianOptions = rig.AtlassianOptions
	// IWAAC is the gate of AtlassianOptions.
	IWAAC = rig.IWAAC
	// AtlassianModes are states that make life hard for an Atlassian's clients.
	AtlassianModes = rig.AtlassianModes
	// AtlassianCounts is what happened at an Atlassian so far.
	AtlassianCounts = rig.AtlassianCounts
	// CrowdOptions are the settings of a Crowd.
	CrowdOptions = rig.CrowdOptions
	// CrowdCounts is what happened at a Crowd so far.
	CrowdCounts = rig.CrowdCounts
	// ProxyOptions say what a proxy asks for.
	ProxyOptions = rig.ProxyOptions
	// ProxyCounts is what has come to a proxy so far.
	ProxyCounts = rig.ProxyCounts
	// FormCounts is what happened at a Form so far.
	FormCounts = rig.FormCounts
	// JazzOptions are the settings of a Jazz.
	JazzOptions = rig.JazzOptions
	// JazzJAS are those of its Jazz Authorization Server.
	JazzJAS = rig.JazzJAS
	// JazzModes are states that make life hard for a Jazz's clients.
	JazzModes = rig.JazzModes
	// JazzCounts is what happened at a Jazz so far.
	JazzCounts = rig.JazzCounts
)

// StartKDC starts a KDC that knows nobody yet. Close it.
func StartKDC(realm string) (*KDC, error) { return rig.NewKDC(realm) }

// StartJira starts a Jira that has a few issues and no user yet. Stop it.
func StartJira(o AtlassianOptions) (*Atlassian, error) { return rig.StartJira(o) }

// StartConfluence starts a Confluence that has no user yet. Stop it.
func StartConfluence(o AtlassianOptions) (*Atlassian, error) { return rig.StartConfluence(o) }

// StartBitbucket starts a Bitbucket that has no user yet. Stop it.
func StartBitbucket(o AtlassianOptions) (*Atlassian, error) { return rig.StartBitbucket(o) }

// StartBamboo starts a Bamboo that has no user yet. Stop it.
func StartBamboo(o AtlassianOptions) (*Atlassian, error) { return rig.StartBamboo(o) }

// StartCrucible starts a Crucible that has no user yet. Stop it.
func StartCrucible(o AtlassianOptions) (*Atlassian, error) { return rig.StartCrucible(o) }

// StartCrowd starts a Crowd that knows no user and no application yet. Stop it.
func StartCrowd(o CrowdOptions) (*Crowd, error) { return rig.StartCrowd(o) }

// StartApp starts a site behind Negotiate, with the keys of HTTP/localhost in a
// keytab file's bytes. Stop it.
func StartApp(keytab []byte) (*App, error) { return rig.StartSite(keytab) }

// StartForm starts a site with a login form that has no user yet. Stop it.
func StartForm() (*Form, error) { return rig.StartForm() }

// StartJazz starts a Jazz server that has no user yet. Stop it.
func StartJazz(o JazzOptions) (*Jazz, error) { return rig.StartJazz(o) }

// StartProxy starts a proxy that lets everybody through unless it is told
// otherwise. Close it.
func StartProxy(o ProxyOptions) (*Proxy, error) { return rig.StartProxy(o) }

// DialLocalhost connects to the hosts whose names end in localhost, whether or not
// a resolver knows them, and to nothing else. It is a DialContext for
// http.Transport.
func DialLocalhost(ctx context.Context, network, address string) (net.Conn, error) {
	return rig.DialLocalhost(ctx, network, address)
}
