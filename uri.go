package main

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const maxURI = 2048 // bytes

// checkURI takes a URI that a browser may be sent to: https; http to this machine,
// for native apps under development and loopback redirection (RFC 8252, section 7.3); or
// a private-use scheme (7.1). It is stored as it stands, so it has to be fine as it
// stands: RFC 3986's characters, no fragment (RFC 6749, section 3.1.2), and nothing
// that some parser on the way reads as another host or path. "" is not given.
func checkURI(uri string) error {
	if uri == "" {
		return nil
	}
	if len(uri) > maxURI {
		return rule("must be at most 2048 bytes")
	}
	if strings.Contains(uri, "#") {
		return rule("must not have a fragment")
	}
	if err := checkCharacters(uri); err != nil {
		return err
	}
	scheme, rest, found := strings.Cut(uri, ":")
	if !found || !validScheme(scheme) {
		return rule("must be an absolute URI")
	}
	scheme = strings.ToLower(scheme)
	private := strings.Contains(scheme, ".")
	if !private && scheme != "https" && scheme != "http" {
		return rule("must be https, http to localhost, 127.0.0.1 or [::1], or a private-use scheme with a dot in its name")
	}
	rest, _, _ = strings.Cut(rest, "?")
	rest, hasAuthority := strings.CutPrefix(rest, "//")
	authority, path := "", rest
	if hasAuthority {
		authority, path = rest, ""
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			authority, path = rest[:i], rest[i:]
		}
	}
	if strings.Contains(authority, "@") {
		return rule("must not have userinfo")
	}
	if strings.ContainsAny(path, "[]") {
		return rule("must not have brackets outside of an IPv6 host and the query")
	}
	if hasDotSegment(path) {
		return rule("must not have dot segments")
	}
	if private {
		if !hasAuthority && !strings.HasPrefix(path, "/") {
			return rule("must have a slash after its private-use scheme")
		}
		if strings.ContainsAny(authority, "[]") && !bracketed(authority) {
			return rule("must not have brackets outside of an IPv6 host and the query")
		}
		return nil
	}
	host, port, err := splitAuthority(authority)
	switch {
	case !hasAuthority || host == "":
		return rule("must have a host")
	case err != nil:
		return err
	case !validPort(port):
		return rule("must have a port from 1 to 65535, or none")
	case scheme == "http" && !strings.EqualFold(host, "localhost") && host != "127.0.0.1" && host != "[::1]":
		return rule("must be https unless its host is localhost, 127.0.0.1 or [::1]")
	case host[0] != '[' && !validHost(host):
		return rule("must have a DNS name, an IPv4 or a bracketed IPv6 address as its host")
	}
	return nil
}

// checkCharacters takes RFC 3986's characters and escapes of what is neither a
// control character nor a backslash, which browsers read as a slash.
func checkCharacters(uri string) error {
	for i := 0; i < len(uri); i++ {
		c := uri[i]
		if c != '%' {
			if !uriCharacters[c] {
				return rule("must have only the characters of RFC 3986")
			}
			continue
		}
		var high, low byte
		ok := i+2 < len(uri)
		if ok {
			var okLow bool
			high, ok = unhex(uri[i+1])
			low, okLow = unhex(uri[i+2])
			ok = ok && okLow
		}
		if !ok {
			return rule("must have two hex digits after each percent sign")
		}
		if c := high<<4 | low; c < ' ' || c == 0x7F || c == '\\' {
			return rule("must not have an escaped control character or backslash")
		}
		i += 2
	}
	return nil
}

const alphanumerics = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

var (
	uriCharacters   = setOf(alphanumerics + "-._~:/?[]@!$&'()*+,;=") // and escapes
	tokenCharacters = setOf(alphanumerics + "-_.")                   // base64url, and the dots between
)

func setOf(characters string) (set [256]bool) {
	for _, c := range []byte(characters) {
		set[c] = true
	}
	return set
}

func isAlphanumeric(c byte) bool {
	return isLetter(c) || '0' <= c && c <= '9'
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// validScheme is RFC 3986, section 3.1.
func validScheme(scheme string) bool {
	for i := range len(scheme) {
		if c := scheme[i]; !isAlphanumeric(c) && c != '+' && c != '-' && c != '.' {
			return false
		}
	}
	return scheme != "" && isLetter(scheme[0])
}

// hasDotSegment tells whether a segment of path is "." or "..", plain or escaped,
// with or without a parameter. Some servers unescape before they split, so an
// escaped slash or semicolon counts as one.
func hasDotSegment(path string) bool {
	if !strings.Contains(path, ".") && !strings.Contains(path, "%") {
		return false
	}
	path = dotEscapes.Replace(path)
	for segment := range strings.SplitSeq(path, "/") {
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

var dotEscapes = strings.NewReplacer("%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%3b", ";", "%3B", ";")

// splitAuthority splits host from ":port"; port is "" where there is none, and keeps
// its colon otherwise. A host in brackets keeps them and is an IPv6 address.
func splitAuthority(authority string) (host, port string, err error) {
	end := strings.IndexByte(authority, ':')
	if strings.HasPrefix(authority, "[") {
		end = strings.IndexByte(authority, ']') + 1
	}
	if end < 0 {
		end = len(authority)
	}
	host, port = authority[:end], authority[end:]
	if strings.ContainsAny(authority, "[]") {
		if !validIPv6(host) || strings.ContainsAny(port, "[]") {
			return host, port, rule("must have a valid IPv6 address without zone in its brackets")
		}
	}
	return host, port, nil
}

// bracketed tells whether authority is an IPv6 address in brackets, and perhaps a
// colon and more.
func bracketed(authority string) bool {
	_, port, err := splitAuthority(authority)
	return err == nil && (port == "" || port[0] == ':')
}

func validIPv6(host string) bool {
	inner, opened := strings.CutPrefix(host, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	ip, err := netip.ParseAddr(inner)
	return opened && closed && err == nil && ip.Is6() && ip.Zone() == ""
}

// validPort takes none, or a colon and 1 to 65535 without a leading zero.
func validPort(port string) bool {
	if port == "" {
		return true
	}
	digits, found := strings.CutPrefix(port, ":")
	n, err := strconv.ParseUint(digits, 10, 16)
	return found && err == nil && n > 0 && digits[0] != '0'
}

// validHost takes a dotted-quad IPv4 address, or a DNS name (RFC 1123, section 2.1).
// A name whose last label is a number would be an IPv4 address to a browser.
func validHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Is4()
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if len(label) < 1 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !isAlphanumeric(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	return len(host) <= 253 && !isNumber(labels[len(labels)-1])
}

// isNumber tells whether a browser reads label as a number: decimal, or hex after 0x.
func isNumber(label string) bool {
	digits := "0123456789"
	if len(label) >= 2 && strings.EqualFold(label[:2], "0x") {
		label, digits = label[2:], "0123456789abcdefABCDEF"
	}
	return !slices.ContainsFunc([]byte(label), func(c byte) bool { return strings.IndexByte(digits, c) < 0 })
}
