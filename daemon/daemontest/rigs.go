package daemontest

import (
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// The rigs are of types that cannot be named outside; their methods are shown
// by, for one: go doc github.com/sessionctl/sessionctl/daemon/internal/rig.Atlassian
//
// Each serves on a free port of 127.0.0.1 under the name localhost, until it is
// closed or stopped. What it imitates, and by which public source, its methods
// say.
type (
	// KDC is a Kerberos KDC for one realm: AddPrincipal, AddService, Keytab,
	// Krb5Conf, SetMode, Counts, Close.
	KDC = rig.KDC
	// Atlassian is a Jira, with a gate that asks for Negotiate if it is told so: AddUser,
	// SetPassword, DropSessions, SolveCaptcha, SetModes, Counts, Hits, URL, Stop,
	// Start.
	Atlassian = rig.Atlassian
	// App is a web site behind Negotiate, as Apache's mod_auth_gssapi makes it:
	// ForgetSessions, Hits, URL, Stop, Start.
	App = rig.Site
	// Form is a web site with a classic login form: AddUser, DropSessions, Counts,
	// Hits, URL, Stop, Start.
	Form = rig.Form
)

// What goes into a Jira, and what it counts.
type (
	// AtlassianOptions are the settings of a Jira.
	AtlassianOptions = rig.AtlassianOptions
	// IWAAC is the gate of AtlassianOptions.
	IWAAC = rig.IWAAC
	// AtlassianModes are states that make life hard for a Jira's clients.
	AtlassianModes = rig.AtlassianModes
	// AtlassianCounts is what happened at a Jira so far.
	AtlassianCounts = rig.AtlassianCounts
	// FormCounts is what happened at a Form so far.
	FormCounts = rig.FormCounts
)

// StartKDC starts a KDC that knows nobody yet. Close it.
func StartKDC(realm string) (*KDC, error) { return rig.NewKDC(realm) }

// StartJira starts a Jira that has a few issues and no user yet. Stop it.
func StartJira(o AtlassianOptions) (*Atlassian, error) { return rig.StartJira(o) }

// StartApp starts a site behind Negotiate, with the keys of HTTP/localhost in a
// keytab file's bytes. Stop it.
func StartApp(keytab []byte) (*App, error) { return rig.StartSite(keytab) }

// StartForm starts a site with a login form that has no user yet. Stop it.
func StartForm() (*Form, error) { return rig.StartForm() }
