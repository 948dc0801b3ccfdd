package shim

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sessionctl/sessionctl/api"
)

// curlSwitches and curlValues are the options of curl(1) that are passed on:
// those without and those with a value, as they are written in full. Any other
// is refused, because curl has options that send headers elsewhere
// (--location-trusted, --next, --proxy, --connect-to, --resolve), believe
// another server (--insecure), read more options (--config), add another
// session (--cookie, --user, --netrc) or write the session down (--verbose,
// --trace, --libcurl, --cookie-jar), and the next curl may have more of them.
const (
	curlSwitches = " -# --progress-bar -0 --http1.0 --http1.1 --http2 -4 --ipv4 -6 --ipv6 --compressed --create-dirs -f --fail --fail-with-body" +
		" -G --get -g --globoff -i --include -I --head -J --remote-header-name -L --location -N --no-buffer --no-clobber --no-progress-meter" +
		" -O --remote-name --path-as-is --post301 --post302 --post303 -R --remote-time --remove-on-error --retry-all-errors --retry-connrefused" +
		" -s --silent -S --show-error --tlsv1.2 --tlsv1.3 --tr-encoding "
	curlValues = " -A --user-agent --cacert --capath --connect-timeout -C --continue-at -d --data --data-ascii --data-binary --data-raw --data-urlencode" +
		" -D --dump-header -e --referer --etag-compare --etag-save --expect100-timeout -F --form --form-string -H --header --json --limit-rate" +
		" --max-filesize --max-redirs -m --max-time -o --output --output-dir -r --range -X --request --retry --retry-delay --retry-max-time" +
		" -Y --speed-limit -y --speed-time --stderr -T --upload-file -w --write-out -z --time-cond --url-query "
)

func curlHas(list, option string) bool {
	return !strings.Contains(option, " ") && strings.Contains(list, " "+option+" ")
}

// curlLine is what the arguments for curl say.
type curlLine struct {
	options  []string // without the URL
	target   string   // the URL, or what is below the site's own
	redirect bool     // whether redirects are followed
}

// readCurl reads the arguments for curl as curl does: short options may stand
// together, a value may be attached to one. Abbreviations of long options,
// which curl takes, are refused: it cannot be known what they will mean.
func readCurl(args []string) (line curlLine, err error) {
	var targets []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		var option, value string
		wants := false
		switch {
		case arg == "--":
			targets, args = append(targets, args...), nil
			continue
		case strings.HasPrefix(arg, "--"):
			option, wants = arg, curlHas(curlValues, arg)
			if !wants && !curlHas(curlSwitches, arg) {
				return line, refusedOption(arg)
			}
			line.redirect = line.redirect || option == "--location"
		case strings.HasPrefix(arg, "-") && arg != "-":
			for i := 1; i < len(arg) && !wants; i++ {
				option = "-" + arg[i:i+1]
				wants = curlHas(curlValues, option)
				if !wants && !curlHas(curlSwitches, option) {
					return line, refusedOption(option)
				}
				line.redirect = line.redirect || option == "-L"
				if wants {
					value = arg[i+1:]
				}
			}
		default:
			targets = append(targets, arg)
			continue
		}
		line.options = append(line.options, arg)
		if wants && value == "" {
			if len(args) == 0 {
				return line, usageError("curl's "+option+" needs a value", curlHelp)
			}
			value, args = args[0], args[1:]
			line.options = append(line.options, value)
		}
		if strings.Contains(" -H --header -A --user-agent -e --referer -X --request ", " "+option+" ") && strings.ContainsAny(value, "\r\n") {
			return line, usageError("curl's "+option+" has a line break in its value, behind which another header could stand", "leave it away")
		}
		if option == "-H" || option == "--header" {
			name, _, _ := strings.Cut(strings.ReplaceAll(value, ";", ":"), ":")
			name = strings.TrimSpace(name)
			switch own := func(h string) bool { return strings.EqualFold(h, name) }; {
			case slices.ContainsFunc(sessionHeaders, own):
				return line, usageError("a Cookie or Authorization header of one's own would stand beside the session's", "leave it away")
			case own("Host"):
				return line, usageError("with a Host header of one's own the session could be another site's", "ask for the site that you mean by its name")
			case strings.HasPrefix(value, "@"):
				return line, usageError("a file of headers is not looked into: there could be a Cookie in it", "give each header by --header")
			}
		}
	}
	if len(targets) != 1 {
		return line, usageError("exactly one URL, or path below the site's own, is needed", curlHelp)
	}
	line.target = targets[0]
	return line, nil
}

const curlHelp = "sessionctl curl --help"

// sessionHeaders are those that curl keeps from other hosts, other ports and
// other schemes when it follows a redirect (since 7.83.0; CVE-2022-27774 and
// CVE-2022-27776). All others it sends to everyone.
var sessionHeaders = []string{"Cookie", "Authorization"}

// refusedOption never repeats a value that may be attached.
func refusedOption(option string) error {
	name, _, _ := strings.Cut(option, "=")
	if flagOf(commonFlags, name) != nil {
		return usageError(name+" is sessionctl's own, and stands before the site's name", curlHelp)
	}
	long := strings.HasPrefix(name, "--")
	if long && (len(name) > 30 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "") || !long && (name < "-!" || name > "-~") {
		name = "an option"
	}
	return usageError("curl's "+name+" is not passed on: it is none of those that are known to keep the session where it belongs",
		"leave it away, write it in full, or pass the session by hand: sessionctl header SITE | curl -H @- URL")
}

// below returns the URL that target means for a site: the site's own URL and
// what follows it, or, if target is absolute, the same URL. Scheme, host and
// port are always written as the site's, so that no two parsers can disagree
// about them.
func below(site, target string) (string, error) {
	scheme, rest, _ := strings.Cut(site, "://")
	origin := scheme + "://" + hostOf(rest)
	url := strings.TrimRight(site, "/") + "/" + strings.TrimLeft(target, "/")
	if strings.Contains(target, "://") && !strings.HasPrefix(target, "/") && !strings.ContainsAny(target[:strings.Index(target, "://")], "/?#") {
		if !validURL(target) || !strings.EqualFold(originOf(target), originOf(site)) {
			return "", usageError("the URL is not the site's: it must begin with "+origin, "sessionctl list shows the sites and their URLs")
		}
		_, rest, _ := strings.Cut(target, "://")
		url = origin + "/" + strings.TrimPrefix(rest[len(hostOf(rest)):], "/")
	}
	if !validURL(site) || !validURL(url) {
		return "", usageError("the URL has a byte that a URL cannot have, or is too long", "write it as %XX")
	}
	url, _, _ = strings.Cut(url, "#")
	return url, nil
}

// originOf returns scheme, host and port of a valid URL.
func originOf(url string) string {
	scheme, rest, _ := strings.Cut(url, "://")
	scheme, host := strings.ToLower(scheme), hostOf(rest)
	port := map[string]string{"http": ":80", "https": ":443"}[scheme]
	return scheme + "://" + strings.TrimSuffix(strings.TrimSuffix(host, ":"), port)
}

// runCurl becomes curl, with the session's headers on a descriptor.
func runCurl(p *process, o *options) error {
	line, err := readCurl(o.rest)
	if err != nil {
		return err
	}
	s, err := p.fetch(o, getSession{site: o.operand})
	if err != nil {
		return err
	}
	url, err := below(s.url, line.target)
	if err != nil {
		return err
	}
	if url != s.url {
		if s, err = p.fetch(o, getSession{site: o.operand, url: url}); err != nil {
			return err
		}
	}
	if name := s.strays(); line.redirect && name != "" {
		return usageError("with --location curl would send the session's "+name+" header to every host that it is led to", "leave --location away, and ask for the last URL")
	}
	lines, err := curlHeaders(s)
	if err != nil {
		return err
	}
	if err := p.announce(s, o); err != nil {
		return err
	}
	fd, err := inPipe(lines)
	if err != nil {
		return err
	}
	// No options of a curlrc, which could be any; no braces and brackets in URLs.
	argv := []string{"curl", "-q", "--globoff", "--proto", "=https", "--proto-redir", "=https"}
	if strings.HasPrefix(url, "http:") {
		// A proxy would read what is not encrypted.
		argv = []string{"curl", "-q", "--globoff", "--proto", "=http", "--proto-redir", "=http,https", "--noproxy", "*"}
	}
	argv = append(argv, "--header", "@/dev/fd/"+strconv.Itoa(fd))
	argv = append(argv, line.options...)
	return p.become(o, append(argv, "--", url), os.Environ())
}

// strays returns the secret header of a session that curl would send to every
// host that it is led to, "" if there is none.
func (s *session) strays() string {
	for _, h := range s.headers {
		if h.secret && !slices.ContainsFunc(sessionHeaders, func(kept string) bool { return strings.EqualFold(kept, h.name) }) {
			return h.name
		}
	}
	return ""
}

// curlHeaders returns a session's headers as the lines of a file for curl's
// --header @FILE, in which an empty value has a semicolon before it.
func curlHeaders(s *session) (string, error) {
	text, err := s.lines("")
	return strings.ReplaceAll(text, ": \n", ";\n"), err
}

const (
	setPipeSize = 1031     // F_SETPIPE_SZ of fcntl(2)
	pipeSize    = 16 << 12 // bytes that a pipe holds unasked, pipe(7)
)

// inPipe returns the end of a pipe that holds text and nothing more, for a
// program that will read it. A pipe has no name, is not swapped out, and is
// empty once it was read.
func inPipe(text string) (int, error) {
	var ends [2]int
	if err := syscall.Pipe(ends[:]); err != nil {
		return 0, err
	}
	defer syscall.Close(ends[1])
	if len(text) > pipeSize {
		if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(ends[1]), setPipeSize, uintptr(len(text))); errno != 0 {
			return 0, &api.Error{Code: api.Unprintable, Detail: "the session's headers do not fit into a pipe: " + errno.Error(), Err: errno, Remedy: anotherForm}
		}
	}
	// The pipe has room for all of it, so that this does not wait.
	if n, err := syscall.Write(ends[1], []byte(text)); err != nil || n != len(text) {
		return 0, &api.Error{Code: api.Unknown, Detail: "the session's headers could not be passed on", Err: err, Remedy: api.LogHint}
	}
	return ends[0], nil
}
