package krb

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// What MIT krb5 assumes where the file says nothing.
const (
	defaultLifetime   = 24 * time.Hour
	defaultUDPLimit   = 1465
	hardUDPLimit      = 32700
	kdcPort, httpPort = "88", "443"
)

// ForRealm returns what the configuration says to clients of a realm: if
// [libdefaults] has a subsection of that name, its ticket_lifetime,
// renew_lifetime, forwardable and proxiable come first.
func (c *Config) ForRealm(realm string) *Config {
	of := *c
	of.realm = realm
	return &of
}

// option returns an option of [libdefaults].
func (c *Config) option(name string) (relation, bool) { return c.first("libdefaults", name) }

// clientOption returns an option of [libdefaults] that the realm of a client
// may have for itself.
func (c *Config) clientOption(name string) (relation, bool) {
	if c.realm != "" {
		if r, ok := c.first("libdefaults", c.realm, name); ok {
			return r, true
		}
	}
	return c.option(name)
}

// DefaultRealm returns [libdefaults] default_realm, "" if there is none.
func (c *Config) DefaultRealm() string {
	r, _ := c.option("default_realm")
	return r.value
}

// DNSLookupKDC says whether DNS may be asked for the KDCs of a realm of which
// [realms] names none: dns_lookup_kdc, or dns_fallback if that is not set.
func (c *Config) DNSLookupKDC() bool {
	for _, name := range []string{"dns_lookup_kdc", "dns_fallback"} {
		if r, ok := c.option(name); ok {
			yes, _ := boolean(r.value)
			return yes
		}
	}
	return true
}

// UDPPreferenceLimit returns the size of a message, in bytes, above which TCP is
// tried before UDP.
func (c *Config) UDPPreferenceLimit() int {
	r, ok := c.option("udp_preference_limit")
	n, valid := integer(r.value)
	if !ok || !valid || n < 0 {
		return defaultUDPLimit
	}
	return min(n, hardUDPLimit)
}

// TicketLifetime returns the lifetime of the tickets to ask for.
func (c *Config) TicketLifetime() time.Duration {
	if c.realm != "" {
		if r, ok := c.first("libdefaults", c.realm, "ticket_lifetime"); ok {
			d, _, _ := lifetime(r.value)
			return d
		}
	}
	return c.lifetime
}

// RenewLifetime returns for how long the tickets to ask for shall be
// renewable; 0: they need not be.
func (c *Config) RenewLifetime() time.Duration {
	r, _ := c.clientOption("renew_lifetime")
	d, _, _ := lifetime(r.value)
	return max(d, 0)
}

// Forwardable says whether to ask for forwardable tickets.
func (c *Config) Forwardable() bool {
	r, _ := c.clientOption("forwardable")
	yes, _ := boolean(r.value)
	return yes
}

// Proxiable says whether to ask for proxiable tickets.
func (c *Config) Proxiable() bool {
	r, _ := c.clientOption("proxiable")
	yes, _ := boolean(r.value)
	return yes
}

// CanonicalizeHostname says whether the canonical name of a host may stand in
// for the name given: always but for dns_canonicalize_hostname = false, since
// the agent tries the name as given first, which MIT calls fallback.
func (c *Config) CanonicalizeHostname() bool {
	r, ok := c.option("dns_canonicalize_hostname")
	yes, valid := boolean(r.value)
	return !ok || !valid || yes
}

// KDCTimeSync says whether to go by the KDC's clock.
func (c *Config) KDCTimeSync() bool {
	r, ok := c.option("kdc_timesync")
	n, valid := integer(r.value)
	return !ok || !valid || n != 0
}

// Enctypes returns the encryption types (by their numbers of RFC 3961) for the
// keys of tickets to ask for, the best one first: "tkt" for a ticket-granting
// ticket, "tgs" for others. They are those of default_tkt_enctypes or
// default_tgs_enctypes, else of permitted_enctypes, whether the agent speaks
// them or not; nil if the file says nothing.
func (c *Config) Enctypes(request string) []int32 {
	for _, name := range []string{"default_" + request + "_enctypes", "permitted_enctypes"} {
		if r, ok := c.option(name); ok {
			list, _ := c.enctypeList(r.value)
			return list
		}
	}
	return nil
}

// enctypeNumbers are the names and families of encryption types that MIT
// krb5 1.20 knows.
var enctypeNumbers = map[string][]int32{
	"default":  {18, 17, 20, 19, 16, 23, 25, 26},
	"aes":      {18, 17, 20, 19},
	"camellia": {26, 25},
	"des3":     {16},
	"rc4":      {23},

	"aes256-cts-hmac-sha1-96": {18}, "aes256-cts": {18}, "aes256-sha1": {18},
	"aes128-cts-hmac-sha1-96": {17}, "aes128-cts": {17}, "aes128-sha1": {17},
	"aes256-cts-hmac-sha384-192": {20}, "aes256-sha2": {20},
	"aes128-cts-hmac-sha256-128": {19}, "aes128-sha2": {19},
	"camellia256-cts-cmac": {26}, "camellia256-cts": {26},
	"camellia128-cts-cmac": {25}, "camellia128-cts": {25},
	"des3-cbc-sha1": {16}, "des3-hmac-sha1": {16}, "des3-cbc-sha1-kd": {16},
	"arcfour-hmac": {23}, "rc4-hmac": {23}, "arcfour-hmac-md5": {23},
	"des3-cbc-raw":     {6},
	"arcfour-hmac-exp": {24}, "rc4-hmac-exp": {24}, "arcfour-hmac-md5-exp": {24},
}

// weakEnctypes count only with allow_weak_crypto.
var weakEnctypes = []int32{6, 24}

// enctypeList reads a list of encryption types, not nil, and says which of its
// words have no effect.
func (c *Config) enctypeList(value string) (list []int32, ignored []string) {
	list = []int32{}
	r, _ := c.option("allow_weak_crypto")
	weak, _ := boolean(r.value)
	for _, word := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" \t\r\n,", r) }) {
		name, remove := strings.CutPrefix(word, "-")
		if !remove {
			name = strings.TrimPrefix(name, "+")
		}
		numbers := enctypeNumbers[strings.ToLower(name)]
		effect := false
		for _, n := range numbers {
			if !weak && slices.Contains(weakEnctypes, n) {
				continue
			}
			effect = true
			if i := slices.Index(list, n); remove && i >= 0 {
				list = slices.Delete(list, i, i+1)
			} else if !remove && i < 0 {
				list = append(list, n)
			}
		}
		if !effect {
			ignored = append(ignored, word)
		}
	}
	return list, ignored
}

// CAPath returns the realms between a client's and a server's, as [capaths]
// has them: empty, if the way is direct; nil, if nothing is said.
func (c *Config) CAPath(client, server string) []string {
	var between []string
	for _, r := range c.relations("capaths", client, server) {
		realm := r.value
		if i := strings.IndexAny(realm, space); i >= 0 {
			realm = realm[:i]
		}
		if between == nil && strings.HasPrefix(realm, ".") {
			return []string{}
		}
		between = append(between, realm)
	}
	return between
}

// HasRealm says whether [realms] has the realm.
func (c *Config) HasRealm(realm string) bool { return c.root.below("realms", realm) != nil }

// RealmOf returns the realm that [domain_realm] names for a host, "" if it
// names none. Of a.b.c it looks up a.b.c, .b.c, b.c, .c and c, in lower case.
// Addresses have no realm.
func (c *Config) RealmOf(host string) string {
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	if strings.Contains(name, ":") || strings.Trim(name, "0123456789.") == "" && strings.Count(name, ".") == 3 {
		return ""
	}
	for {
		if r, ok := c.first("domain_realm", name); ok {
			return r.value
		}
		if rest, ok := strings.CutPrefix(name, "."); ok {
			name = rest
		} else if dot := strings.IndexByte(name, '.'); dot >= 0 {
			name = name[dot:]
		} else {
			return ""
		}
	}
}

// KDCs returns the realm's KDCs as host:port, in the order of the files,
// without repetitions. A KDC proxy (https://…) is left out. One entry that is
// no host makes MIT's library find no KDC at all; CheckRealm quotes it.
func (c *Config) KDCs(realm string) []string {
	var kdcs []string
	seen := make(map[string]bool)
	for _, r := range c.relations("realms", realm, "kdc") {
		address, proxy, ok := kdcAddress(r.value)
		if !ok {
			return nil
		}
		if !proxy && !seen[address] {
			seen[address] = true
			kdcs = append(kdcs, address)
		}
	}
	return kdcs
}

// sameKDCs says whether another configuration leads to the same KDCs of a realm,
// and in the same way.
func (c *Config) sameKDCs(other *Config, realm string) bool {
	kdcs := c.KDCs(realm)
	return slices.Equal(kdcs, other.KDCs(realm)) && (len(kdcs) > 0 || c.DNSLookupKDC() == other.DNSLookupKDC())
}

// kdcAddress reads "host", "host:port", "[2001:db8::1]:port" or the URL of a
// KDC proxy (MS-KKDCP). What follows a blank is not part of the host.
func kdcAddress(value string) (address string, proxy, ok bool) {
	port := kdcPort
	if value, proxy = strings.CutPrefix(value, "https://"); proxy {
		port = httpPort
		value, _, _ = strings.Cut(value, "/")
	}
	host, rest := value, ""
	if inside, bracket := strings.CutPrefix(value, "["); bracket {
		if host, rest, ok = strings.Cut(inside, "]"); !ok {
			return "", proxy, false
		}
	} else if i := strings.IndexAny(value, ":"+space); i >= 0 {
		host, rest = value[:i], value[i:]
	}
	if digits, given := strings.CutPrefix(rest, ":"); given {
		n, ok := integer(digits)
		if !ok || n < 0 || n > math.MaxUint16 {
			return "", proxy, false
		}
		port = strconv.Itoa(n)
	}
	return net.JoinHostPort(host, port), proxy, host != ""
}

// CheckRealm returns what is missing for tickets of a realm: an error of code
// Krb5ConfInvalid if a kdc line is wrong, if there is none that the agent can
// use, or if there is none and DNS may not be asked either.
func (c *Config) CheckRealm(realm string) error {
	lines := c.relations("realms", realm, "kdc")
	for _, r := range lines {
		if _, _, ok := kdcAddress(r.value); !ok {
			return r.at.errorf("%s is no host, host:port or [address]:port, and MIT's library finds no KDC of the realm because of it", quote(r.value))
		}
	}
	switch {
	case len(c.KDCs(realm)) > 0 || len(lines) == 0 && c.DNSLookupKDC():
		return nil
	case len(lines) > 0:
		return &api.Error{Code: api.Krb5ConfInvalid,
			Detail: fmt.Sprintf("all KDCs of the realm %s in %s are KDC proxies (https), which the agent does not speak to", shown(realm), lines[0].at.file),
			Remedy: "add the realm's KDCs themselves"}
	}
	where := "is configured in " + several(c.files)
	if len(c.files) == 0 {
		where = "is configured: none of " + several(c.paths) + " exists"
	}
	return &api.Error{Code: api.Krb5ConfInvalid,
		Detail: fmt.Sprintf("no KDC of the realm %s %s, and dns_lookup_kdc is off", shown(realm), where),
		Remedy: fmt.Sprintf("add to [realms]: %s = { kdc = kdc.example.com }, with the realm's own KDC", shown(realm))}
}

// scalars are the options of [libdefaults] that the agent heeds.
var scalars = []string{
	"default_realm", "ticket_lifetime", "renew_lifetime", "forwardable", "proxiable",
	"dns_canonicalize_hostname", "dns_lookup_kdc", "dns_fallback", "udp_preference_limit", "kdc_timesync",
	"default_tkt_enctypes", "default_tgs_enctypes", "permitted_enctypes", "allow_weak_crypto",
}

// check refuses values with which MIT's library refuses the file or fails at
// each login, and warns of those that it passes over. It judges what
// [libdefaults] says to single realms as well.
func (c *Config) check() error {
	for _, name := range []string{"dns_canonicalize_hostname", "allow_weak_crypto", "ignore_acceptor_hostname", "enforce_ok_as_delegate"} {
		r, ok := c.option(name)
		_, valid := boolean(r.value)
		if ok && !valid && !(name == "dns_canonicalize_hostname" && strings.EqualFold(r.value, "fallback")) {
			return r.at.errorf("%s is neither yes nor no", quote(r.value))
		}
	}
	if r, ok := c.option("udp_preference_limit"); ok {
		if _, valid := integer(r.value); !valid {
			return r.at.errorf("%s is no number", quote(r.value))
		}
	}
	for _, name := range []string{"default_tkt_enctypes", "default_tgs_enctypes", "permitted_enctypes"} {
		if r, ok := c.option(name); ok {
			list, ignored := c.enctypeList(r.value)
			if len(list) == 0 {
				return r.at.errorf("none of these is an encryption type that MIT krb5 knows and allows")
			}
			for _, word := range ignored {
				c.warnf(r.at, "%s is no encryption type that MIT krb5 knows and allows", quote(word))
			}
		}
	}
	if r, ok := c.option("kdc_timesync"); ok {
		if _, valid := integer(r.value); !valid {
			c.warnf(r.at, "%s is no number, and has no effect", quote(r.value))
		}
	}
	c.lifetime = defaultLifetime
	if r, ok := c.option("ticket_lifetime"); ok {
		c.lifetime, _, _ = lifetime(r.value)
	}
	return c.checkSection(&c.root)
}

// checkSection judges the relations of a section, which a path of names leads
// to, and of those in it.
func (c *Config) checkSection(s *section, where ...string) error {
	for _, tag := range slices.Sorted(maps.Keys(s.relations)) {
		if err := c.checkRelations(append(where, tag), s.relations[tag]); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.sections)) {
		if err := c.checkSection(s.sections[name], append(where, name)...); err != nil {
			return err
		}
	}
	return nil
}

// checkRelations judges the relations of one path.
func (c *Config) checkRelations(where []string, all []relation) error {
	first, tag := all[0], where[len(where)-1]
	switch section := where[0]; {
	case section == "libdefaults" && len(where) <= 3:
		switch tag {
		case "ticket_lifetime", "renew_lifetime":
			d, ignored, ok := lifetime(first.value)
			if !ok {
				return first.at.errorf("%s is no duration such as 10h or 1d", quote(first.value))
			}
			if d <= 0 && tag == "ticket_lifetime" {
				return first.at.errorf("tickets would end when they begin")
			}
			if ignored != "" && ignored[0] != '#' && ignored[0] != ';' {
				c.warnf(first.at, "it means %s; %s has no effect", d, quote(ignored))
			}
		case "forwardable", "proxiable", "dns_lookup_kdc", "dns_fallback":
			own := len(where) == 2 || tag[0] != 'd'
			if _, valid := boolean(first.value); own && !valid {
				c.warnf(first.at, "%s is neither yes nor no, and taken for no", quote(first.value))
			}
		}
	case section == "realms" && tag == "kdc":
		for _, r := range all {
			if _, proxy, _ := kdcAddress(r.value); proxy {
				c.warnf(r.at, "the agent does not speak to KDC proxies")
			}
		}
	}
	if where[0] == "libdefaults" && slices.Contains(scalars, tag) || where[0] == "domain_realm" {
		for _, r := range all[1:] {
			if r.source == first.source && r.value != first.value {
				c.warnf(r.at, "the first %s counts, which is at %s:%d", quote(tag), first.at.file, first.at.line)
			}
		}
	}
	return nil
}

func (c *Config) warnf(at position, format string, args ...any) {
	if len(c.warnings) == maxWarnings {
		c.untold++ // at once: there may be a million
		return
	}
	c.warn("%s", at.says(format, args...))
}

// boolean reads yes or no as MIT does: any other value is no, and not valid.
func boolean(value string) (yes, valid bool) {
	switch strings.ToLower(value) {
	case "y", "yes", "true", "t", "1", "on":
		return true, true
	case "n", "no", "false", "nil", "0", "off":
		return false, true
	}
	return false, false
}

// integer reads a number of 32 bits as C's strtol does.
func integer(value string) (int, bool) {
	n, err := strconv.ParseInt(strings.TrimLeft(value, space), 10, 32)
	return int(n), err == nil
}

// A duration is d-hh:mm:ss, h:mm:ss, h:mm, or numbers with units in their
// order, of which a single number is seconds.
var (
	durationToken = regexp.MustCompile(`^(?:[0-9]+|[-:dhms]|[ \t\n][\s\v]*)`)
	durationForms = []*regexp.Regexp{ // days, hours, minutes, seconds
		regexp.MustCompile(`^[\s\v]*()()()(-?[0-9]+)$`),
		regexp.MustCompile(`^[\s\v]*()(-?[0-9]+):([0-9]{1,2})(?::([0-9]{1,2}))?$`),
		regexp.MustCompile(`^[\s\v]*(-?[0-9]+)-([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})$`),
		regexp.MustCompile(`^(?:[\s\v]*(-?[0-9]+)d)?(?:[\s\v]*(-?[0-9]+)h)?(?:[\s\v]*(-?[0-9]+)m)?(?:[\s\v]*(-?[0-9]+)s|[\s\v]*)$`),
	}
)

// lifetime reads a duration of at most 2^31 seconds as MIT does. It ends at the
// first character that can be no part of one, and what is left has no effect.
func lifetime(value string) (d time.Duration, ignored string, ok bool) {
	ignored = value
	for n := -1; n != 0; ignored = ignored[n:] {
		n = len(durationToken.FindString(ignored))
	}
	for _, form := range durationForms {
		numbers := form.FindStringSubmatch(strings.TrimSuffix(value, ignored))
		if numbers == nil || strings.Join(numbers[1:], "") == "" {
			continue
		}
		var seconds int64
		for i, unit := range []int64{86400, 3600, 60, 1} {
			n, err := strconv.ParseInt(cmp.Or(numbers[i+1], "0"), 10, 32)
			seconds += n * unit
			if err != nil || n == math.MinInt32 || seconds != int64(int32(seconds)) {
				return 0, "", false
			}
		}
		return time.Duration(seconds) * time.Second, ignored, true
	}
	return 0, "", false
}
