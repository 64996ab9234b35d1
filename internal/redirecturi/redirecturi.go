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

	"golang.org/x/net/idna"
)

const maxLength = 2048 // bytes

const alphanumerics = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// Sets of characters are tables, because strings.Trim would build one from its cutset in each call.
var (
	uriCharacters    = setOf(alphanumerics + "-._~:/?[]@!$&'()*+,;=") // RFC 3986, without the percent sign
	schemeCharacters = setOf(alphanumerics + "+-.")
	labelCharacters  = setOf(alphanumerics + "-")
	digits           = setOf("0123456789")
	hexDigits        = setOf("0123456789abcdefABCDEF")
)

func setOf(characters string) *[256]bool {
	var set [256]bool
	for _, c := range []byte(characters) {
		set[c] = true
	}
	return &set
}

// consistsOf reports whether set contains every byte of text.
func consistsOf(text string, set *[256]bool) bool {
	for i := range len(text) {
		if !set[text[i]] {
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
	for i := 0; i < len(uri); i++ {
		if uriCharacters[uri[i]] {
			continue
		}
		if uri[i] != '%' {
			return errors.New("must have only the characters of RFC 3986")
		}
		c, err := strconv.ParseUint(uri[i+1:min(i+3, len(uri))], 16, 8)
		if err != nil || i+3 > len(uri) {
			return errors.New("must have two hex digits after each percent sign")
		}
		if c < ' ' || c == 0x7F || c == '\\' {
			return errors.New("must not have an escaped control character or backslash")
		}
		i += 2
	}
	return nil
}

// validScheme reports whether scheme, in lower case, follows RFC 3986, section 3.1.
func validScheme(scheme string) bool {
	return scheme != "" && 'a' <= scheme[0] && scheme[0] <= 'z' && consistsOf(scheme, schemeCharacters)
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

// validHost reports whether host is a dotted-quad IPv4 address or a DNS name (RFC 1123, section 2.1). A label that
// begins with xn-- must be a valid A-label (RFC 5890, section 2.3.2.1).
func validHost(host string) bool {
	if isNumber(host[strings.LastIndexByte(host, '.')+1:]) { // browsers parse such a host as IPv4
		ip, err := netip.ParseAddr(host)
		return err == nil && ip.Is4()
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) < 1 || len(label) > 63 || !consistsOf(label, labelCharacters) ||
			label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if len(label) >= 4 && strings.EqualFold(label[:4], "xn--") {
			if _, err := idnaProfile.ToASCII(label); err != nil {
				return false
			}
		}
	}
	return len(host) <= 253
}

// idnaProfile has the rules of browsers for internationalised names: UTS 46 with the options of "domain to ASCII" in
// the WHATWG URL Standard.
var idnaProfile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckJoiners(true), idna.CheckHyphens(false),
	idna.StrictDomainName(false), idna.Transitional(false))

// isNumber reports whether browsers parse label as a number, which is decimal, or hex after 0x.
func isNumber(label string) bool {
	if len(label) >= 2 && strings.EqualFold(label[:2], "0x") {
		return consistsOf(label[2:], hexDigits)
	}
	return consistsOf(label, digits)
}
