package redirecturi

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// uriTests is RFC 3986 as the contract narrows it: what Check takes, and what it refuses.
func uriTests() map[bool][]string {
	const https = "https://app.example.com"
	label := func(n int) string { return strings.Repeat("a", n) }
	// A name of n bytes: three labels of 63 with their dots, and one more.
	host := func(n int) string { return strings.Repeat(label(63)+".", 3) + label(n-192) }
	padded := func(n int) string { return https + "/" + strings.Repeat("a", n-len(https)-1) }
	return map[bool][]string{
		true: {
			https + "/cb", https, https + "/", https + "?", https + "/cb?", https + "?state=1&a=b", https + "/cb?state=1&a=b",
			"HTTPS://APP.Example.com/Cb", "hTTps://app.example.com/cb",
			"https://xn--bcher-kva.example/cb", "https://XN--BCHER-KVA.example/", "https://xn--fa-hia.example/",
			"https://xn--ls8h.example/", "https://a.xn--wgv71a",
			"https://a--b.example/", "https://localhost/", "https://a/", "https://1a.b2/",
			"https://1.2.3.a/",
			https + "//evil.com", https + "/%2F%2Fevil.com", https + "//", https + "/a//b",
			https + "/cb?next=https://evil.com", https + "/cb?code=x&state=y", https + "/cb?a=1&a=2", https + "/?a/b?c@d:e",
			https + "/a@b", https + "/a:b", https + "/~u/-._!$&'()*+,;=:@", https + "/a%20b%C3%A9%c2%85%25",
			https + "/%252e%252e/", https + "/%23",

			// Ports.
			https + ":8443/cb", https + ":443/cb", https + ":1", https + ":65535?x", "https://192.0.2.1:8443/",
			"https://[2001:db8::1]:8443/",

			// Lengths.
			padded(2048), "https://" + label(63) + ".example/", "https://" + host(253) + "/",
			"https://" + host(253) + ":65535/", "https://" + host(252),

			// Last labels that only look like numbers.
			"https://example.0a/", "https://example.1e9/", "https://example.0xg/", "https://example.x0/",
			"https://0x7f.example/", "https://10.example/", "https://a.0-1/",

			// Addresses.
			"https://192.0.2.1/cb", "https://0.0.0.0/", "https://255.255.255.255/", "https://127.0.0.2/",
			"https://[::1]/", "https://[2001:DB8::1]/", "https://[::]/", "https://[::ffff:192.0.2.1]/",
			"https://[1:2:3:4:5:6:7:8]", "https://[::1]?[x]",

			// Loopback.
			"http://localhost/cb", "http://localhost:3000/cb", "http://LocalHost/cb", "HTTP://localhost",
			"http://localhost:65535",
			"http://127.0.0.1:51004/cb", "http://127.0.0.1", "http://[::1]:51004/cb", "http://[::1]",

			// Private-use schemes.
			"com.example.app:/oauth2redirect", "com.example.app:/", "com.example.app://done", "com.example.app://",
			"com.example.app:///done", "com.example.app:/done?x=1",
			"com.example.app://done?a[0]=@", "com.example.app:/a@b:c", "COM.Example.App:/Done", "a.b:/", "a.:/",
			"com.example-app+1.x:/done",
			"com.example.app://under_score.:0", "com.example.app://a:b:c/d", "com.example.app://%61",
			"com.example.app://[::1]", "com.example.app://[::1]:x/y", "com.example.app://[::1]:", "com.example.app://[::1]?]",
			"javascript.x:/a",

			// What looks like a dot segment, and the query, which is the caller's.
			https + "/.well-known/x", https + "/...", https + "/a..", https + "/..a", https + "/;..", https + "/a;..",
			https + "/a.;b", https + "?../..", https + "/x?/../%2e%2e/", https + "/a%2f.b",
			https + "?a[0]=1&b[]=2", https + "/?]x[",
		},
		false: {
			// Schemes.
			"http://app.example.com/cb", "http://127.0.0.2/cb", "http://127.0.0.1.example.com/", "http://127.1/",
			"http://0x7f.0.0.1/", "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://[0:0:0:0:0:0:0:1]/",
			"http://[::2]/",
			"http://localhost.evil.com", "http://evil-localhost", "http://localhost.", "http://localhost.localdomain",
			"http://", "http:///localhost", "http:localhost", "http:/localhost/cb",
			"myapp://cb", "myapp:/cb", "myapp:", "urn:ietf:wg:oauth:2.0:oob", "javascript:alert(1)", "JaVaScRiPt:alert(1)",
			"javascript://app.example.com/%0aalert(1)", "javascript:/x.y",
			"data:text/html;base64,PHNjcmlwdD4=", "vbscript:x", "file:///etc/passwd", "blob:https://app.example.com/1",
			"view-source:https://app.example.com/", "about:blank",
			"ftp://app.example.com/", "ws://app.example.com/", "wss://app.example.com/", "mailto:a@app.example.com", "tel:+1",
			"content:x", "ldap://app.example.com/", "gopher://app.example.com/", "intent://x/", "httpss://app.example.com/",
			"http+unix://localhost/",
			"1com.example:/x", ".com:/x", "-a.b:/x", "+a.b:/x", "com_example.app:/x", "com.exa%6dple:/x",
			"://app.example.com/", ":", "com.example.app", "/com.example.app:/x",
			"//evil.com/cb", "/cb", "cb", "?x=1", "app.example.com/cb", "app.example.com:443/cb", "localhost:3000/cb",

			// White space, control characters, beyond ASCII.
			" ", " " + https, https + "/cb ", https + "/c b", "\t" + https, https + "/cb\n", https + "/cb\r\nSet-Cookie:x=1",
			https + "/\x00", https + "/\x7f", "https://app.exa\tmple.com/", "java\nscript:x",
			"https://\u0430pp.example.com/", https + "/caf\u00e9", https + "/\u202e", "https://b\u00fccher.example/",
			"https://app\u3002example.com/", "https://app.example\uff0ecom/", "\uff48ttps://app.example.com/",
			https + "/\u00a0", https + "/\xff", "\ufeff" + https,

			// Userinfo and its look-alikes.
			"https://user:pw@app.example.com/cb", "https://@app.example.com/", "https://:@app.example.com/",
			"https://app.example.com@evil.com/cb", "https://app.example.com%40evil.com/", "https://a@b@app.example.com/",
			"http://localhost@evil.com/", "http://localhost:80@evil.com/",
			`https://evil.com\@app.example.com/cb`, `https://app.example.com\.evil.com`, `https:\\evil.com\cb`,
			`https:/\evil.com`, https + `/\..\x`,
			"com.example.app://user@done", "com.example.app://user:pw@done", "com.example.app://@",
			"com.example.app://a:b@c?d",

			// Hosts.
			"https:///evil.com/cb", "https://", "https:", "https:/", "https:app.example.com", "https:/app.example.com/cb",
			"https://?x", "https://:443/", "https:////app.example.com/",
			"https://ex%61mple.com/", "https://app.example.com%2f/", "https://app.example.com%00.evil.com/",
			"https://app.example.com./", "https://app.example.com.:443/", "https://.example.com/", "https://app..example.com/",
			"https://.", "https://..",
			"https://-a.example/", "https://a-.example/", "https://a.-example/", "https://a.example-/", "https://-/",
			"https://a_b.example/", "https://_dmarc.example/", "https://*.example.com/", "https://a,b.example/",
			"https://a;b/", "https://a!b/", "https://$a/", "https://a(b)/", "https://a=b/", "https://a'b/", "https://a+b/",
			"https://a&b/", "https://~a/",
			"https://xn--a.example/", "https://XN--A.example/", "https://a.xn--0", "https://xn--zz/",
			"https://" + label(64) + ".example/", "https://example." + label(64), "https://" + host(254) + "/",
			"https://" + host(254) + ":443/",
			"https://example.1/", "https://example.123/", "https://example.0x1f/", "https://example.0X1F/",
			"https://example.0x/", "https://1/", "https://0x7f000001/", "https://2130706433/", "https://0/",

			// IPv4.
			"https://192.0.2.256/", "https://256.0.2.1/", "https://192.0.2/", "https://192.0.2.1.1/", "https://192.0.2.01/",
			"https://0300.0.2.1/", "https://192.0.2.0x1/", "https://192.0.2.1./", "https://.192.0.2.1/", "https://192.0..1/",
			"https://127.1/", "https://192.0.2.-1/", "https://192.0.2.1%20/",

			// IPv6.
			"https://[::1]x/", "https://::1/", "https://[::1", "https://::1]/", "https://[]/", "https://[", "https://]",
			"https://[]", "https://[::1]]/", "https://[[::1]]/", "https://[::1][::1]/", "https://a[::1]/",
			"https://[::1]a:443/", "https://[:::1]/", "https://[1:2:3:4:5:6:7]/", "https://[1:2:3:4:5:6:7:8:9]/",
			"https://[::12345]/", "https://[::g]/", "https://[::256.0.0.1]/",
			"https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[fe80::1%25]/", "https://[::ffff:192.0.2.1%251]/",
			"https://[192.0.2.1]/", "https://[v1.x]/", "https://[vF.a:b]/", "https://[app.example.com]/", "https://[%3A%3A1]/",
			"http://[::1%25lo]/",

			// Ports.
			https + ":", https + ":/", https + ":?x", https + ":0/", https + ":00/", https + ":65536/", https + ":080/",
			https + ":01", https + ":99999/", https + ":123456789012345678901/", https + ":80a", https + ":a80/",
			https + ":+80/", https + ":-1/", https + ":8_0/", https + ":0x50/", https + ":80:80/", https + ":%38/",
			"http://localhost:0/", "http://localhost:/", "http://localhost:080/", "http://127.0.0.1:65536/", "http://[::1]:/",
			"http://[::1]:0/", "https://[::1]:65536/", "https://192.0.2.1:/",

			// Brackets.
			https + "/[", https + "/]", https + "/a[0]", https + "/[::1]?x", "com.example.app:/a[0]", "com.example.app://a/[",
			"com.example.app://[", "com.example.app://]", "com.example.app://[]", "com.example.app://[x]/",
			"com.example.app://a[::1]", "com.example.app://[::1]x", "com.example.app://[::1]:[", "com.example.app://[::1%25a]",
			"com.example.app://[::1", "com.example.app://[::1/cb", "com.example.app://[::1?x]", "com.example.app://::1]",
			"com.example.app://x[::1]", "com.example.app://[::1]]", "com.example.app://[[::1]]", "com.example.app://[::1]:]",
			"com.example.app://[::1][::1]", "com.example.app://[192.0.2.1]", "com.example.app://::1]:[",

			// Fragments.
			https + "/cb#frag", https + "/cb#", https + "#", https + "/cb?x#y", "#", "com.example.app:/done#",
			"http://localhost/#/route",

			// Escapes.
			https + "/%zz", https + "/%2", https + "/%", https + "/%%41", https + "/%2g", https + "/%g2", https + "?%",
			https + "?x=%4", "com.example.app://%", "com.example.app:/%0",
			https + "/%00", https + "/%0a", https + "/%0D", https + "/%1f", https + "/%7f", https + "/%7F", https + "/%5c",
			https + "/%5C", https + "?x=%0a", https + "?x=%5c", "com.example.app:/%09", "com.example.app://%5C",

			// Dot segments.
			https + "/../evil", https + "/%2e%2e/evil", https + "/./x", https + "/..", https + "/.", https + "/a/..",
			https + "/a/.?x", https + "/..?x", https + "//..//", https + "/%2E", https + "/.%2e", https + "/%2e.",
			https + "/%2E%2e?x",
			https + "/..;x/", https + "/.;x", https + "/..;", https + "/%2e%2e;x=1/a", https + "/a;b/../c", https + "/..%3bx",
			https + "/..%3Bx/a", https + "/.%3b", https + "/a/%2e%2E%3bx",
			https + "/a%2F..", https + "/a%2f..%2fb", https + "/..%2Fevil", https + "/..%2fevil", https + "/%2F..",
			https + "/%2e%2e%2fevil", https + "/a%2f%2e", https + "/a%2f..;x",
			"http://localhost/../x", "com.example.app:/../x", "com.example.app:/.", "com.example.app://a/..",
			"com.example.app:///..%2f",

			// Opaque.
			"com.example.app:done", "com.example.app:", "com.example.app:?x=1", "com.example.app:..", "com.example.app:done/x",
			"com.example.app:%2Fdone", "com.example.app:@/",

			padded(2049), padded(60 << 10), strings.Repeat("a", 2049),
		},
	}
}

func TestCheck(t *testing.T) {
	for accept, uris := range uriTests() {
		for _, uri := range uris {
			switch err := Check(uri); {
			case (err == nil) != accept:
				t.Errorf("Check(%.100q) = %v, want accepted %t", uri, err, accept)
			case err != nil && !strings.HasPrefix(err.Error(), "must "):
				t.Errorf("Check(%.100q) = %v, want what it must be", uri, err)
			}
		}
	}
	if err := Check(""); err != nil {
		t.Errorf("Check of no URI = %v", err)
	}
}

// The first broken rule is named, and nothing of the URI is quoted.
func TestCheckRules(t *testing.T) {
	for _, test := range []struct{ name, uri, want string }{
		{"length", "ftp://" + strings.Repeat("#", 2048), "must be at most 2048 bytes"},
		{"fragment", "ftp:// #", "must not have a fragment"},
		{"characters", "ftp://\"%zz", "must have only the characters of RFC 3986"},
		{"escape", "ftp://%zz", "must have two hex digits after each percent sign"},
		{"escaped control", "ftp://%0a", "must not have an escaped control character or backslash"},
		{"no scheme", "//user@x", "must be an absolute URI"},
		{"scheme's first letter", "1a.b://user@x", "must be an absolute URI"},
		{"another scheme", "ftp://user@x", "must be https, http to localhost, 127.0.0.1 or [::1], " +
			"or a private-use scheme with a dot in its name"},
		{"userinfo", "https://user@x/[/..", "must not have userinfo"},
		{"userinfo of an app", "com.example.app://user@x/[", "must not have userinfo"},
		{"brackets", "https://x_y/[/..", "must not have brackets outside of an IPv6 host and the query"},
		{"brackets of an app", "com.example.app://[x]", "must not have brackets outside of an IPv6 host and the query"},
		{"dot segments", "https://x_y/..", "must not have dot segments"},
		{"dot segments of an app", "com.example.app://[x]/..", "must not have dot segments"},
		{"opaque", "com.example.app:done", "must have a slash after its private-use scheme"},
		{"no host", "https:/x", "must have a host"},
		{"port", "https://x_y:0", "must have a port from 1 to 65535, or none"},
		{"name", "http://x_y",
			"must have a DNS name, an IPv4 or a bracketed IPv6 address without zone as its host"},
		{"zone", "https://[fe80::1%25eth0]",
			"must have a DNS name, an IPv4 or a bracketed IPv6 address without zone as its host"},
		{"http", "http://app.example.com", "must be https unless its host is localhost, 127.0.0.1 or [::1]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := Check(test.uri); err == nil || err.Error() != test.want {
				t.Errorf("Check(%.100q) = %v, want %s", test.uri, err, test.want)
			}
		})
	}
}

// Each byte in each part of a URI.
func TestCheckBytes(t *testing.T) {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	const path = unreserved + "!$&'()*+,;=:@/"
	for format, allowed := range map[string]string{
		"https://app.example.com/a%sb":  path + "?",
		"https://app.example.com/?a%sb": path + "?[]",
		"https://app.a%sb":              unreserved[:64] + "/?", // letters, digits, hyphen, dot
		"com.example.app:/a%sb":         path + "?",
		"com.example.app://a%sb":        strings.ReplaceAll(path, "@", "") + "?",
	} {
		for c := range 256 {
			uri := fmt.Sprintf(format, []byte{byte(c)})
			want := strings.IndexByte(allowed, byte(c)) >= 0
			if err := Check(uri); (err == nil) != want {
				t.Errorf("Check(%q) = %v, want accepted %t", uri, err, want)
			}
		}
	}
}

func TestCheckCharacters(t *testing.T) {
	const (
		characters = "must have only the characters of RFC 3986"
		digits     = "must have two hex digits after each percent sign"
		control    = "must not have an escaped control character or backslash"
	)
	for _, test := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"unreserved", "azAZ09-._~", ""},
		{"delimiters", ":/?[]@!$&'()*+,;=", ""},
		{"escapes", "%20%41%2f%2F%7e%80%fF%25", ""},
		{"escaped percent", "%2500", ""},
		{"fragment", "a#b", characters},
		{"space", "a b", characters},
		{"quote", `a"b`, characters},
		{"backslash", `a\b`, characters},
		{"angle bracket", "a<b", characters},
		{"brace", "a{b", characters},
		{"caret", "a^b", characters},
		{"pipe", "a|b", characters},
		{"backquote", "a`b", characters},
		{"NUL", "a\x00", characters},
		{"line feed", "a\n", characters},
		{"DEL", "a\x7f", characters},
		{"beyond ASCII", "é", characters},
		{"stray byte", "\xff", characters},
		{"percent at the end", "a%", digits},
		{"one digit at the end", "a%4", digits},
		{"two percents", "%%41", digits},
		{"first digit", "%g1", digits},
		{"second digit", "%1g", digits},
		{"sign", "%+1", digits},
		{"underscore", "%_1", digits},
		{"space for a digit", "% 1", digits},
		{"escaped NUL", "%00", control},
		{"escaped unit separator", "%1F", control},
		{"escaped DEL", "%7f", control},
		{"escaped backslash", "%5c", control},
		{"escaped backslash in capitals", "%5C", control},
		{"the first of two", "%5c\x00", control},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := CheckCharacters(test.text); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("CheckCharacters(%q) = %q, want %q", test.text, got, test.want)
			}
		})
	}
}

func TestValidPort(t *testing.T) {
	for want, ports := range map[bool][]string{
		true: {"1", "9", "10", "80", "443", "8080", "65535"},
		false: {"", "0", "00", "01", "080", "65536", "99999", "123456789012345678901", "-1", "+80", " 80", "80 ", "8_0",
			"0x50", "80a", "a", "1e2", "80:", ":80", "8.0", "٣"},
	} {
		for _, port := range ports {
			if got := ValidPort(port); got != want {
				t.Errorf("ValidPort(%q) = %t, want %t", port, got, want)
			}
		}
	}
}

var (
	absolute    = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*):(//[^/?]*)?([^?]*)`)
	webSchemes  = regexp.MustCompile(`(?i)^https?$`)
	dotSegments = regexp.MustCompile(`(^|/)\.\.?($|[/;])`)
	brackets    = regexp.MustCompile(`^//\[[0-9A-Fa-f:.]+\](:[^\[\]]*)?$`)
)

// FuzzURI holds what Check takes against net/url and against plainer, laxer rules.
func FuzzURI(f *testing.F) {
	for _, uris := range uriTests() {
		for _, uri := range uris {
			f.Add(uri)
		}
	}
	f.Fuzz(func(t *testing.T, uri string) {
		if uri == "" || Check(uri) != nil {
			return
		}
		for _, c := range []byte(uri) {
			if c <= ' ' || c >= 0x7f || strings.IndexByte("\"#<>\\^`{|}", c) >= 0 {
				t.Fatalf("has %q", c)
			}
		}
		parts := absolute.FindStringSubmatch(uri)
		if parts == nil || len(uri) > 2048 {
			t.Fatalf("no absolute URI of at most 2048 bytes")
		}
		scheme, authority, path := parts[1], parts[2], parts[3]
		if strings.Contains(authority, "@") {
			t.Errorf("has userinfo")
		}
		if strings.ContainsAny(path, "[]") || strings.ContainsAny(authority, "[]") && !brackets.MatchString(authority) {
			t.Errorf("authority %q, path %q: brackets not around an IPv6 address", authority, path)
		}
		plain, err := url.PathUnescape(path)
		if err != nil || dotSegments.MatchString(plain) {
			t.Errorf("path %q: dot segment, or %v", plain, err)
		}
		web := webSchemes.MatchString(scheme)
		if !web {
			if !strings.Contains(scheme, ".") {
				t.Errorf("scheme %q without a dot", scheme)
			}
			// What stands there is the app's own, and need be no host to net/url.
			uri = scheme + "://app" + strings.TrimPrefix(uri, scheme+":"+authority)
		}
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatalf("net/url: %v", err)
		}
		if !strings.EqualFold(u.Scheme, scheme) || u.User != nil || u.Fragment != "" || u.Opaque != "" {
			t.Errorf("net/url reads %#v", u)
		}
		if web && (u.Host == "" || "//"+u.Host != authority) {
			t.Errorf("net/url's host = %q, want that of %q", u.Host, authority)
		}
		loopback := []string{"localhost", "127.0.0.1", "::1"}
		if strings.EqualFold(scheme, "http") && !slices.Contains(loopback, strings.ToLower(u.Hostname())) {
			t.Errorf("http to %q", u.Hostname())
		}
	})
}

func BenchmarkURI(b *testing.B) {
	for name, uri := range map[string]string{
		"usual":     "https://acme.com/success",
		"2KB":       "https://acme.com/success?state=" + strings.Repeat("%41bc", 400),
		"of an app": "com.example.app:/done",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Check(uri); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
