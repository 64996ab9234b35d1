package config

import (
	"cmp"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"authsession/internal/redirecturi"
)

// Parsers return the value of a variable's text, which is "" if the variable is not set and has no default, and report
// whether the text is valid.

func anyText(text string) (string, bool) { return text, true }

func nonEmpty(text string) (string, bool) { return text, text != "" }

func oneOf(values ...string) func(string) (string, bool) {
	return func(text string) (string, bool) { return text, slices.Contains(values, text) }
}

// within parses a value from low to high, both included.
func within[T cmp.Ordered](low, high T, parse func(string) (T, error)) func(string) (T, bool) {
	return func(text string) (T, bool) {
		value, err := parse(text)
		return value, err == nil && low <= value && value <= high
	}
}

// listOf parses comma-separated members and trims the white space around them. The list of "" is nil.
func listOf[T any](parse func(string) (T, bool)) func(string) ([]T, bool) {
	return func(text string) (members []T, ok bool) {
		if text == "" {
			return nil, true
		}
		for part := range strings.SplitSeq(text, ",") {
			member, ok := parse(strings.TrimSpace(part))
			if !ok {
				return nil, false
			}
			members = append(members, member)
		}
		return members, true
	}
}

func parseLevel(text string) (level slog.Level, ok bool) {
	level, ok = map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}[text]
	return level, ok
}

func parsePrefix(text string) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(text)
	return prefix, err == nil && !prefix.Addr().Is4In6()
}

// parseHeader returns the canonical form of a header's name.
func parseHeader(name string) (string, bool) {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
	return textproto.CanonicalMIMEHeaderKey(name), strings.Trim(name, allowed) == ""
}

// parseAddress parses a listen address, which has a numeric port.
func parseAddress(text string) (string, bool) {
	_, port, err := net.SplitHostPort(text)
	_, portErr := strconv.ParseUint(port, 10, 16)
	return text, text == "" || err == nil && portErr == nil
}

// parseRoots returns the certificates of a PEM file, or nil for "".
func parseRoots(path string) (*x509.CertPool, bool) {
	if path == "" {
		return nil, true
	}
	data, err := os.ReadFile(path)
	roots := x509.NewCertPool()
	return roots, err == nil && roots.AppendCertsFromPEM(data)
}

// parseAuthURL adds the parameter sess_id, without a value, to the query of the consent page's URL.
func parseAuthURL(text string) (string, bool) {
	u, err := url.Parse(text)
	switch {
	case err != nil || !isHTTPSOrLoopback(u) || u.User != nil || u.Query().Has("sess_id") ||
		u.Port() != "" && !redirecturi.ValidPort(u.Port()) || redirecturi.CheckCharacters(text) != nil:
		return "", false
	case u.RawQuery != "":
		return text + "&sess_id=", true
	case u.ForceQuery:
		return text + "sess_id=", true
	}
	return text + "?sess_id=", true
}

func parseJWKSURL(text string) (*url.URL, bool) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, false
	}
	isFile := u.Scheme == "file" && u.Host == "" && strings.HasPrefix(u.Path, "/") && !strings.ContainsAny(text, "?#")
	misread := strings.Contains(text, "#") || strings.Contains(u.Path, "@") // a password with raw characters
	return u, isFile || isHTTPSOrLoopback(u) && !misread
}

// isHTTPSOrLoopback reports whether u has a host and is https, or http to a loopback host.
func isHTTPSOrLoopback(u *url.URL) bool {
	ip, _ := netip.ParseAddr(u.Hostname())
	loopback := strings.EqualFold(u.Hostname(), "localhost") || ip.IsLoopback()
	return u.Hostname() != "" && (u.Scheme == "https" || u.Scheme == "http" && loopback)
}

// withoutSecrets returns text; if the variable is a URL, without its userinfo and query.
func withoutSecrets(name, text string) string {
	if !strings.HasSuffix(name, "_URL") {
		return text
	}
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + u.Path
}
