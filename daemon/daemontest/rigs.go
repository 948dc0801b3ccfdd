package daemontest

import (
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// The rigs. Each serves on a free port of 127.0.0.1 under the name localhost,
// until it is closed or stopped; what it imitates, and by which public source,
// its methods say.
type (
	// KDC is a Kerberos KDC for one realm.
	KDC = rig.KDC
	// Jira is a Jira, with a gate that asks for Negotiate if it is told so.
	Jira = rig.Jira
	// JiraOptions, JiraModes, JiraCounts and IWAAC belong to Jira.
	JiraOptions = rig.JiraOptions
	JiraModes   = rig.JiraModes
	JiraCounts  = rig.JiraCounts
	IWAAC       = rig.IWAAC
	// App is a web site behind Negotiate, as Apache's mod_auth_gssapi makes it.
	App = rig.Site
	// Form is a web site with a classic login form.
	Form = rig.Form
)

// StartKDC starts a KDC that knows nobody yet. Close it.
func StartKDC(realm string) (*KDC, error) { return rig.NewKDC(realm) }

// StartJira starts a Jira that has a few issues and no user yet. Stop it.
func StartJira(o JiraOptions) (*Jira, error) { return rig.StartJira(o) }

// StartApp starts a site behind Negotiate, with the keys of HTTP/localhost in a
// keytab file's bytes. Stop it.
func StartApp(keytab []byte) (*App, error) { return rig.StartSite(keytab) }

// StartForm starts a site with a login form that has no user yet. Stop it.
func StartForm() (*Form, error) { return rig.StartForm() }
