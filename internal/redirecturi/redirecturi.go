// Package redirecturi checks the URIs to which a browser may be sent when a consent flow ends.
//
// A valid redirect URI has the scheme https; http with a loopback host, for native apps (RFC 8252, section 7.3); or an
// app's private-use scheme with a dot in its name (section 7.1). It is stored and used byte for byte, never normalised.
// So a valid URI has only RFC 3986's characters, no fragment (RFC 6749, section 3.1.2), no userinfo and no dot
// segments, and nothing else that browsers and servers parse differently.
package redirecturi

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

const maxLength = 2048 // bytes

// consistsOf reports whether text has only ASCII letters, digits and the bytes of more. (strings.Trim took 2.5 times as
// long for a whole Check.)
func consistsOf(text, more string) bool {
	for i := range len(text) {
		c := text[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(more, c) >= 0) {
			return false
		}
	}
	return true
}

// Check returns nil if uri is valid or "" (absent). Otherwise the error names the first broken rule. Its message
// follows the name of the member, as in "redirect_uri must not have a fragment", and quotes nothing of uri.
func Check(uri string) error {
	if uri == "" {
		return nil
	}
	if len(uri) > maxLength {
		return errors.New("must be at most 2048 bytes")
	}
	if strings.Contains(uri, "#") {
		return errors.New("must not have a fragment")
	}
	if err := CheckCharacters(uri); err != nil {
		return err
	}
	scheme, rest, found := strings.Cut(uri, ":")
	scheme = strings.ToLower(scheme)
	if !found || !validScheme(scheme) {
		return errors.New("must be an absolute URI")
	}
	private := strings.Contains(scheme, ".")
	if !private && scheme != "https" && scheme != "http" {
		return errors.New("must be https, http to localhost, 127.0.0.1 or [::1], " +
			"or a private-use scheme with a dot in its name")
	}
	rest, _, _ = strings.Cut(rest, "?")
	path, hasAuthority := strings.CutPrefix(rest, "//")
	var authority string
	if hasAuthority {
		authority, _, _ = strings.Cut(path, "/")
		path = path[len(authority):]
	}
	switch {
	case strings.Contains(authority, "@"):
		return errors.New("must not have userinfo")
	case strings.ContainsAny(path, "[]"):
		return errors.New("must not have brackets outside of an IPv6 host and the query")
	case hasDotSegment(path):
		return errors.New("must not have dot segments")
	case !private:
		return checkWeb(scheme, authority)
	case !hasAuthority && !strings.HasPrefix(path, "/"):
		return errors.New("must have a slash after its private-use scheme")
	case strings.ContainsAny(authority, "[]"): // the authority is the app's own, but brackets are for IPv6
		host, after, closed := strings.Cut(authority, "]")
		if !closed || !validIPv6(host+"]") || after != "" && after[0] != ':' || strings.ContainsAny(after, "[]") {
			return errors.New("must not have brackets outside of an IPv6 host and the query")
		}
	}
	return nil
}

// checkWeb checks the host and port of an http or https URI.
func checkWeb(scheme, authority string) error {
	host, port, hasPort := authority, "", false
	if colon := strings.LastIndexByte(host, ':'); colon > strings.LastIndexByte(host, ']') {
		host, port, hasPort = authority[:colon], authority[colon+1:], true
	}
	switch {
	case host == "":
		return errors.New("must have a host")
	case hasPort && !ValidPort(port):
		return errors.New("must have a port from 1 to 65535, or none")
	case !validHost(host) && !validIPv6(host):
		return errors.New("must have a DNS name, an IPv4 or a bracketed IPv6 address without zone as its host")
	case scheme == "http" && !strings.EqualFold(host, "localhost") && host != "127.0.0.1" && host != "[::1]":
		return errors.New("must be https unless its host is localhost, 127.0.0.1 or [::1]")
	}
	return nil
}

// CheckCharacters returns an error unless uri consists of RFC 3986's characters and well-formed percent-escapes. It
// rejects escaped control characters and escaped backslashes, because browsers read a backslash as a slash.
func CheckCharacters(uri string) error {
	if !consistsOf(uri, "%-._~:/?[]@!$&'()*+,;=") {
		return errors.New("must have only the characters of RFC 3986")
	}
	_, escapes, found := strings.Cut(uri, "%")
	if !found {
		return nil
	}
	for escape := range strings.SplitSeq(escapes, "%") {
		c, err := strconv.ParseUint(escape[:min(2, len(escape))], 16, 8)
		switch {
		case err != nil || len(escape) < 2:
			return errors.New("must have two hex digits after each percent sign")
		case c < ' ' || c == 0x7F || c == '\\':
			return errors.New("must not have an escaped control character or backslash")
		}
	}
	return nil
}

// validScheme reports whether scheme, in lower case, follows RFC 3986, section 3.1.
func validScheme(scheme string) bool {
	return scheme != "" && 'a' <= scheme[0] && scheme[0] <= 'z' && consistsOf(scheme, "+-.")
}

// hasDotSegment reports whether a segment of path is "." or "..", plain or escaped, with or without a parameter. An
// escaped slash or semicolon counts as a plain one, because some servers unescape a path before they split it.
func hasDotSegment(path string) bool {
	if !strings.ContainsAny(path, ".%") {
		return false
	}
	for segment := range strings.SplitSeq(dotEscapes.Replace(path), "/") {
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

var dotEscapes = strings.NewReplacer("%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%3b", ";", "%3B", ";")

// ValidPort reports whether port is a number from 1 to 65535 without a leading zero.
func ValidPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && port[0] != '0'
}

// validIPv6 reports whether host is an IPv6 address in brackets, without a zone.
func validIPv6(host string) bool {
	inner, opened := strings.CutPrefix(host, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	ip, err := netip.ParseAddr(inner)
	return opened && closed && err == nil && ip.Is6() && ip.Zone() == ""
}

// validHost reports whether host is a dotted-quad IPv4 address or a DNS name (RFC 1123, section 2.1).
func validHost(host string) bool {
	if isNumber(host[strings.LastIndexByte(host, '.')+1:]) { // browsers parse such a host as IPv4
		ip, err := netip.ParseAddr(host)
		return err == nil && ip.Is4()
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) < 1 || len(label) > 63 || !consistsOf(label, "-") ||
			label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return len(host) <= 253
}

// isNumber reports whether browsers parse label as a number, which is decimal, or hex after 0x.
func isNumber(label string) bool {
	if len(label) >= 2 && strings.EqualFold(label[:2], "0x") {
		return strings.Trim(label[2:], "0123456789abcdefABCDEF") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
