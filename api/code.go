package api

import "strings"

// Code names a failure. Codes are stable, lower case with underscores; the
// same failure has the same code in every protocol, log line and exit message.
// On the wire (google.rpc.ErrorInfo, domain ErrorDomain) a code is the reason,
// in upper case.
type Code string

// ErrorDomain is the domain of the agent's google.rpc.ErrorInfo details.
const ErrorDomain = "sessionctl"

// Transport and server state. The session is kept; trying later may help.
const (
	DNSError         Code = "dns_error"         // the host name does not resolve
	NetworkError     Code = "network_error"     // refused, reset, no route
	Timeout          Code = "timeout"           // no answer in time
	TLSError         Code = "tls_error"         // handshake or certificate failure
	RateLimited      Code = "rate_limited"      // 429
	Maintenance      Code = "maintenance"       // 503
	Server5xx        Code = "server_5xx"        // other 5xx
	InsecureRedirect Code = "insecure_redirect" // a chain leaves https
)

// The credential and the person behind it.
const (
	BadCredentials      Code = "bad_credentials"        // the secret is wrong
	PrincipalUnknown    Code = "principal_unknown"      // KDC error 6
	PrincipalDisabled   Code = "principal_disabled"     // KDC error 18
	PrincipalExpired    Code = "principal_expired"      // KDC error 1
	PasswordExpired     Code = "password_expired"       // KDC error 23
	Captcha             Code = "captcha"                // a person has to solve a picture at the site
	AccountLocked       Code = "account_locked"         // by the site, for all passwords
	SecondFactor        Code = "second_factor_required" // the site wants more than a password
	AppPasswordRequired Code = "app_password_required"  // the site takes application passwords, and this is none
	ConsentRequired     Code = "consent_required"       // a person has to let one application act at another
	NoSecret            Code = "no_secret"              // no password is stored
	BasicDisabled       Code = "basic_disabled"         // the site takes no passwords this way
	CSRF403             Code = "csrf_403"               // the site's guard against forged requests
	Forbidden           Code = "forbidden"              // identity known, right missing
)

// Challenge, Kerberos and local set-up.
const (
	NoChallenge          Code = "no_challenge"          // the login URL did not ask for Negotiate
	ChallengeUnsupported Code = "challenge_unsupported" // only schemes the agent does not speak
	NTLMOnly             Code = "ntlm_only"             // only NTLM is offered
	ProxyAuthRequired    Code = "proxy_auth_required"   // 407, and nothing to answer it with
	ProxyAuthFailed      Code = "proxy_auth_failed"     // 407 again after a token or a password
	ProxyError           Code = "proxy_error"           // the proxy is out of reach, or cannot reach the site
	NoTicket             Code = "no_ticket"             // the ticket cache holds no TGT that lives
	KDCUnreachable       Code = "kdc_unreachable"       // no KDC answers
	SPNUnknown           Code = "spn_unknown"           // the KDC does not know the service
	ClockSkew            Code = "clock_skew"            // KRB-ERROR 37
	ServiceKeyMismatch   Code = "service_key_mismatch"  // KRB-ERROR 41, 44, 45 from the service
	Replay               Code = "replay"                // KRB-ERROR 34 from the service
	MutualAuthFailed     Code = "mutual_auth_failed"    // the service's AP-REP is wrong, or missing where it must not be
	BadChannelBinding    Code = "bad_channel_binding"   // the token cannot be bound to the TLS connection, or not to this one
	NegotiateRejected    Code = "negotiate_rejected"    // refused without a reason
	EtypeUnsupported     Code = "etype_unsupported"     // keytab and KDC share no enctype
	KDCError             Code = "kdc_error"             // any other KRB-ERROR of the KDC
	KeytabUnreadable     Code = "keytab_unreadable"     // missing, not ours to read, malformed
	CCacheUnusable       Code = "ccache_unusable"       // missing, not ours to read, malformed, of a type nobody reads
	Krb5ConfInvalid      Code = "krb5conf_invalid"      // malformed, or nothing about the realm
)

// The login chain and what follows it.
const (
	SSORedirect           Code = "sso_redirect"              // to a host that is not configured
	RedirectLoop          Code = "redirect_loop"             // too many hops, or the same one again
	NoSessionCookie       Code = "no_session_cookie"         // logged in, but the site keeps no session
	LoginOKButProbeFailed Code = "login_ok_but_probe_failed" // not logged in after all
	WrongIdentity         Code = "wrong_identity"            // another user's session
	Expired               Code = "expired"                   // the session ended
	PerRequestOnly        Code = "per_request_only"          // the site takes no cookie
	UnexpectedStatus      Code = "unexpected_status"         // a status no rule names
	Unknown               Code = "unknown"                   // nothing else matches
)

// The agent itself.
const (
	NoAgent         Code = "no_agent"          // nothing answers on the socket
	UntrustedSocket Code = "untrusted_socket"  // the socket may belong to somebody else
	UnknownSite     Code = "unknown_site"      // no such site, or not for this caller
	AmbiguousSite   Code = "ambiguous_site"    // a URL fits several sites
	Denied          Code = "denied"            // the site yes, this verb no
	NotCached       Code = "not_cached"        // cached_only, and nothing at hand
	Latched         Code = "latched"           // an earlier refusal stands
	StoreLocked     Code = "store_locked"      // another agent has the store
	StoreKeyMissing Code = "store_key_missing" // no master key, or the wrong one
	StoreDamaged    Code = "store_damaged"     // the store does not open
	StoreUnsafe     Code = "store_unsafe"      // others may have had their hands on it
	StoreFailed     Code = "store_failed"      // the store cannot be read or written
	StoreFull       Code = "store_full"        // the store takes no more records
	SocketInUse     Code = "socket_in_use"     // another agent listens there
	SocketFailed    Code = "socket_failed"     // the socket cannot be made
	ConfigInvalid   Code = "config_invalid"    // the configuration is wrong
	Quota           Code = "quota"             // too many connections, requests or logins
	VersionSkew     Code = "version_skew"      // sessionctl, sessionctl-admin, sessiond differ
	Deadline        Code = "deadline"          // the caller's own time is over
	Unprintable     Code = "unprintable"       // a cookie holds bytes that cannot be printed safely
	InvalidRequest  Code = "invalid_request"   // the request itself is wrong
)

// Exit statuses of sessionctl.
const (
	ExitOK      = 0
	ExitOther   = 1
	ExitUsage   = 2
	ExitNoAgent = 3
	ExitUnknown = 4 // unknown site, or not allowed
	ExitPerson  = 5 // a person must act
	ExitDenied  = 6 // the verb is not allowed
	ExitLater   = 7 // try later
)

// The canonical gRPC status codes that the agent uses
// (https://grpc.io/docs/guides/status-codes/).
const (
	grpcUnknown            = 2
	grpcInvalidArgument    = 3
	grpcDeadlineExceeded   = 4
	grpcNotFound           = 5
	grpcPermissionDenied   = 7
	grpcResourceExhausted  = 8
	grpcFailedPrecondition = 9
	grpcUnavailable        = 14
)

type class struct {
	exit int
	grpc uint32
}

var (
	later  = class{ExitLater, grpcUnavailable}
	person = class{ExitPerson, grpcFailedPrecondition}
)

var classes = map[Code]class{
	DNSError: later, NetworkError: later, Timeout: later, TLSError: later,
	RateLimited: later, Maintenance: later, Server5xx: later,
	KDCUnreachable: later, NotCached: later, ProxyError: later,
	StoreFailed: later,
	Deadline:    {ExitLater, grpcDeadlineExceeded},
	Quota:       {ExitLater, grpcResourceExhausted},

	InsecureRedirect: person, BadCredentials: person, PrincipalUnknown: person,
	PrincipalDisabled: person, PrincipalExpired: person, PasswordExpired: person,
	Captcha: person, AccountLocked: person, SecondFactor: person, AppPasswordRequired: person, ConsentRequired: person, NoSecret: person, BasicDisabled: person, CSRF403: person,
	Forbidden: person, NoChallenge: person, ChallengeUnsupported: person,
	NTLMOnly: person, SPNUnknown: person,
	ClockSkew: person, ServiceKeyMismatch: person, Replay: person,
	MutualAuthFailed: person, NegotiateRejected: person, EtypeUnsupported: person,
	KDCError: person, KeytabUnreadable: person, Krb5ConfInvalid: person,
	ProxyAuthRequired: person, ProxyAuthFailed: person, NoTicket: person,
	BadChannelBinding: person, CCacheUnusable: person,
	SSORedirect: person, RedirectLoop: person, NoSessionCookie: person,
	LoginOKButProbeFailed: person, PerRequestOnly: person, WrongIdentity: person, Expired: person,
	UnexpectedStatus: person, Latched: person, ConfigInvalid: person,
	StoreLocked: person, StoreKeyMissing: person, StoreDamaged: person,
	StoreUnsafe: person, StoreFull: person,
	SocketInUse: person, SocketFailed: person,

	UnknownSite:   {ExitUnknown, grpcNotFound},
	AmbiguousSite: {ExitUnknown, grpcNotFound},
	Denied:        {ExitDenied, grpcPermissionDenied},

	NoAgent:         {ExitNoAgent, grpcUnavailable},
	UntrustedSocket: {ExitNoAgent, grpcUnavailable},
	VersionSkew:     {ExitOther, grpcFailedPrecondition},
	InvalidRequest:  {ExitUsage, grpcInvalidArgument},
	Unprintable:     {ExitOther, grpcUnknown},
	Unknown:         {ExitOther, grpcUnknown},
}

// Exit returns the exit status that sessionctl ends with for this failure.
func (c Code) Exit() int {
	if k, ok := classes[c]; ok {
		return k.exit
	}
	return ExitOther
}

// GRPC returns the canonical gRPC status code that carries this failure.
func (c Code) GRPC() uint32 {
	if k, ok := classes[c]; ok {
		return k.grpc
	}
	return grpcUnknown
}

// Refusal reports whether the code is a verifier's refusal of the secret or of
// the account: no second attempt cures it, and too many lock the account.
func (c Code) Refusal() bool {
	switch c {
	case BadCredentials, Captcha, AccountLocked, SecondFactor, PrincipalUnknown, PrincipalDisabled, PrincipalExpired, PasswordExpired:
		return true
	}
	return false
}

// Temporary reports whether the failure may pass without anybody doing
// something, so that trying again later can help.
func (c Code) Temporary() bool { return c == NoAgent || c.Exit() == ExitLater }

// Reason returns the code as the reason of a google.rpc.ErrorInfo.
func (c Code) Reason() string { return strings.ToUpper(string(c)) }

// CodeOfReason is the inverse of Code.Reason.
func CodeOfReason(reason string) Code { return Code(strings.ToLower(reason)) }
