package redirecturi_test

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"authsession/internal/redirecturi"
)

const site = "https://app.example.com"

func label(length int) string { return strings.Repeat("a", length) }

// host returns a DNS name of 194 to 255 bytes: three labels of 63 bytes and a last one.
func host(length int) string { return strings.Repeat(label(63)+".", 3) + label(length-192) }

func padded(length int) string { return site + "/" + strings.Repeat("a", length-len(site)-1) }

var checkTests = []struct {
	name   string
	accept []string
	refuse []string
}{
	{name: "web", accept: []string{
		site, site + "/", site + "/cb", site + "?", site + "/cb?", site + "?state=1&a=b", site + "/cb?state=1&a=b",
		"HTTPS://APP.Example.com/Cb", "hTTps://app.example.com/cb", "https://xn--bcher-kva.example/cb",
		"https://XN--BCHER-KVA.example/", "https://xn--fa-hia.example/", "https://xn--ls8h.example/",
		"https://a.xn--wgv71a", "https://a--b.example/", "https://localhost/", "https://a/", "https://1a.b2/",
		"https://1.2.3.a/", site + "//evil.com", site + "/%2F%2Fevil.com", site + "//", site + "/a//b",
		site + "/cb?next=https://evil.com", site + "/cb?code=x&state=y", site + "/cb?a=1&a=2", site + "/?a/b?c@d:e",
		site + "/a@b", site + "/a:b", site + "/~u/-._!$&'()*+,;=:@", site + "/a%20b%C3%A9%c2%85%25",
		site + "/%252e%252e/", site + "/%23",
	}},
	{name: "scheme", refuse: []string{
		"http://app.example.com/cb", "http://127.0.0.2/cb", "http://127.0.0.1.example.com/", "http://127.1/",
		"http://0x7f.0.0.1/", "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://[0:0:0:0:0:0:0:1]/",
		"http://[::2]/", "http://localhost.evil.com", "http://evil-localhost", "http://localhost.",
		"http://localhost.localdomain", "http://", "http:///localhost", "http:localhost", "http:/localhost/cb",
		"myapp://cb", "myapp:/cb", "myapp:", "urn:ietf:wg:oauth:2.0:oob", "javascript:alert(1)", "JaVaScRiPt:alert(1)",
		"javascript://app.example.com/%0aalert(1)", "javascript:/x.y", "data:text/html;base64,PHNjcmlwdD4=", "vbscript:x",
		"file:///etc/passwd", "blob:https://app.example.com/1", "view-source:https://app.example.com/", "about:blank",
		"ftp://app.example.com/", "ws://app.example.com/", "wss://app.example.com/", "mailto:a@app.example.com", "tel:+1",
		"content:x", "ldap://app.example.com/", "gopher://app.example.com/", "intent://x/", "httpss://app.example.com/",
		"http+unix://localhost/", "1com.example:/x", ".com:/x", "-a.b:/x", "+a.b:/x", "com_example.app:/x",
		"com.exa%6dple:/x", "://app.example.com/", ":", "com.example.app", "/com.example.app:/x", "//evil.com/cb", "/cb",
		"cb", "?x=1", "app.example.com/cb", "app.example.com:443/cb", "localhost:3000/cb",
	}},
	{name: "port", accept: []string{
		site + ":8443/cb", site + ":443/cb", site + ":1", site + ":65535?x", "https://192.0.2.1:8443/",
		"https://[2001:db8::1]:8443/",
	}, refuse: []string{
		site + ":", site + ":/", site + ":?x", site + ":0/", site + ":00/", site + ":65536/", site + ":080/",
		site + ":01", site + ":99999/", site + ":123456789012345678901/", site + ":80a", site + ":a80/",
		site + ":+80/", site + ":-1/", site + ":8_0/", site + ":0x50/", site + ":80:80/", site + ":%38/",
		"http://localhost:0/", "http://localhost:/", "http://localhost:080/", "http://127.0.0.1:65536/", "http://[::1]:/",
		"http://[::1]:0/", "https://[::1]:65536/", "https://192.0.2.1:/",
	}},
	{name: "length", accept: []string{
		padded(2048), "https://" + label(63) + ".example/", "https://" + host(253) + "/",
		"https://" + host(253) + ":65535/", "https://" + host(252),
	}, refuse: []string{
		padded(2049), padded(60 << 10), strings.Repeat("a", 2049),
	}},
	{name: "not printable ASCII", refuse: []string{
		" ", " " + site, site + "/cb ", site + "/c b", "\t" + site, site + "/cb\n", site + "/cb\r\nSet-Cookie:x=1",
		site + "/\x00", site + "/\x7f", "https://app.exa\tmple.com/", "java\nscript:x", "https://\u0430pp.example.com/",
		site + "/caf\u00e9", site + "/\u202e", "https://b\u00fccher.example/", "https://app\u3002example.com/",
		"https://app.example\uff0ecom/", "\uff48ttps://app.example.com/", site + "/\u00a0", site + "/\xff",
		"\ufeff" + site,
	}},
	{name: "userinfo", refuse: []string{
		"https://user:pw@app.example.com/cb", "https://@app.example.com/", "https://:@app.example.com/",
		"https://app.example.com@evil.com/cb", "https://app.example.com%40evil.com/", "https://a@b@app.example.com/",
		"http://localhost@evil.com/", "http://localhost:80@evil.com/", `https://evil.com\@app.example.com/cb`,
		`https://app.example.com\.evil.com`, `https:\\evil.com\cb`, `https:/\evil.com`, site + `/\..\x`,
		"com.example.app://user@done", "com.example.app://user:pw@done", "com.example.app://@", "com.example.app://a:b@c?d",
	}},
	{name: "host", refuse: []string{
		"https:///evil.com/cb", "https://", "https:", "https:/", "https:app.example.com", "https:/app.example.com/cb",
		"https://?x", "https://:443/", "https:////app.example.com/", "https://ex%61mple.com/",
		"https://app.example.com%2f/", "https://app.example.com%00.evil.com/", "https://app.example.com./",
		"https://app.example.com.:443/", "https://.example.com/", "https://app..example.com/", "https://.", "https://..",
		"https://-a.example/", "https://a-.example/", "https://a.-example/", "https://a.example-/", "https://-/",
		"https://a_b.example/", "https://_dmarc.example/", "https://*.example.com/", "https://a,b.example/", "https://a;b/",
		"https://a!b/", "https://$a/", "https://a(b)/", "https://a=b/", "https://a'b/", "https://a+b/", "https://a&b/",
		"https://~a/",
		"https://" + label(64) + ".example/", "https://example." + label(64), "https://" + host(254) + "/",
		"https://" + host(254) + ":443/", "https://example.1/", "https://example.123/", "https://example.0x1f/",
		"https://example.0X1F/", "https://example.0x/", "https://1/", "https://0x7f000001/", "https://2130706433/",
		"https://0/",
	}},
	{name: "number as last label", accept: []string{
		"https://example.0a/", "https://example.1e9/", "https://example.0xg/", "https://example.x0/",
		"https://0x7f.example/", "https://10.example/", "https://a.0-1/",
	}},
	{name: "IP address", accept: []string{
		"https://192.0.2.1/cb", "https://0.0.0.0/", "https://255.255.255.255/", "https://127.0.0.2/", "https://[::1]/",
		"https://[2001:DB8::1]/", "https://[::]/", "https://[::ffff:192.0.2.1]/", "https://[1:2:3:4:5:6:7:8]",
		"https://[::1]?[x]",
	}, refuse: []string{
		"https://192.0.2.256/", "https://256.0.2.1/", "https://192.0.2/", "https://192.0.2.1.1/", "https://192.0.2.01/",
		"https://0300.0.2.1/", "https://192.0.2.0x1/", "https://192.0.2.1./", "https://.192.0.2.1/", "https://192.0..1/",
		"https://127.1/", "https://192.0.2.-1/", "https://192.0.2.1%20/", "https://[::1]x/", "https://::1/", "https://[::1",
		"https://::1]/", "https://[]/", "https://[", "https://]", "https://[]", "https://[::1]]/", "https://[[::1]]/",
		"https://[::1][::1]/", "https://a[::1]/", "https://[::1]a:443/", "https://[:::1]/", "https://[1:2:3:4:5:6:7]/",
		"https://[1:2:3:4:5:6:7:8:9]/", "https://[::12345]/", "https://[::g]/", "https://[::256.0.0.1]/",
		"https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[fe80::1%25]/", "https://[::ffff:192.0.2.1%251]/",
		"https://[192.0.2.1]/", "https://[v1.x]/", "https://[vF.a:b]/", "https://[app.example.com]/", "https://[%3A%3A1]/",
		"http://[::1%25lo]/",
	}},
	{name: "loopback", accept: []string{
		"http://localhost/cb", "http://localhost:3000/cb", "http://LocalHost/cb", "HTTP://localhost",
		"http://localhost:65535", "http://127.0.0.1:51004/cb", "http://127.0.0.1", "http://[::1]:51004/cb", "http://[::1]",
	}},
	{name: "private-use scheme", accept: []string{
		"com.example.app:/oauth2redirect", "com.example.app:/", "com.example.app://done", "com.example.app://",
		"com.example.app:///done", "com.example.app:/done?x=1", "com.example.app://done?a[0]=@", "com.example.app:/a@b:c",
		"COM.Example.App:/Done", "a.b:/", "a.:/", "com.example-app+1.x:/done", "com.example.app://under_score.:0",
		"com.example.app://a:b:c/d", "com.example.app://%61", "com.example.app://[::1]", "com.example.app://[::1]:x/y",
		"com.example.app://[::1]:", "com.example.app://[::1]?]", "javascript.x:/a",
	}, refuse: []string{
		"com.example.app:done", "com.example.app:", "com.example.app:?x=1", "com.example.app:..", "com.example.app:done/x",
		"com.example.app:%2Fdone", "com.example.app:@/",
	}},
	{name: "brackets", refuse: []string{
		site + "/[", site + "/]", site + "/a[0]", site + "/[::1]?x", "com.example.app:/a[0]", "com.example.app://a/[",
		"com.example.app://[", "com.example.app://]", "com.example.app://[]", "com.example.app://[x]/",
		"com.example.app://a[::1]", "com.example.app://[::1]x", "com.example.app://[::1]:[", "com.example.app://[::1%25a]",
		"com.example.app://[::1", "com.example.app://[::1/cb", "com.example.app://[::1?x]", "com.example.app://::1]",
		"com.example.app://x[::1]", "com.example.app://[::1]]", "com.example.app://[[::1]]", "com.example.app://[::1]:]",
		"com.example.app://[::1][::1]", "com.example.app://[192.0.2.1]", "com.example.app://::1]:[",
	}},
	{name: "fragment", refuse: []string{
		site + "/cb#frag", site + "/cb#", site + "#", site + "/cb?x#y", "#", "com.example.app:/done#",
		"http://localhost/#/route",
	}},
	{name: "escape", refuse: []string{
		site + "/%zz", site + "/%2", site + "/%", site + "/%%41", site + "/%2g", site + "/%g2", site + "?%",
		site + "?x=%4", "com.example.app://%", "com.example.app:/%0", site + "/%00", site + "/%0a", site + "/%0D",
		site + "/%1f", site + "/%7f", site + "/%7F", site + "/%5c", site + "/%5C", site + "?x=%0a", site + "?x=%5c",
		"com.example.app:/%09", "com.example.app://%5C",
	}},
	{name: "dot segment", accept: []string{
		site + "/.well-known/x", site + "/...", site + "/a..", site + "/..a", site + "/;..", site + "/a;..",
		site + "/a.;b", site + "?../..", site + "/x?/../%2e%2e/", site + "/a%2f.b", site + "?a[0]=1&b[]=2",
		site + "/?]x[",
	}, refuse: []string{
		site + "/../evil", site + "/%2e%2e/evil", site + "/./x", site + "/..", site + "/.", site + "/a/..",
		site + "/a/.?x", site + "/..?x", site + "//..//", site + "/%2E", site + "/.%2e", site + "/%2e.",
		site + "/%2E%2e?x", site + "/..;x/", site + "/.;x", site + "/..;", site + "/%2e%2e;x=1/a", site + "/a;b/../c",
		site + "/..%3bx", site + "/..%3Bx/a", site + "/.%3b", site + "/a/%2e%2E%3bx", site + "/a%2F..",
		site + "/a%2f..%2fb", site + "/..%2Fevil", site + "/..%2fevil", site + "/%2F..", site + "/%2e%2e%2fevil",
		site + "/a%2f%2e", site + "/a%2f..;x", "http://localhost/../x", "com.example.app:/../x", "com.example.app:/.",
		"com.example.app://a/..", "com.example.app:///..%2f",
	}},
}

func TestCheck(t *testing.T) {
	for _, tt := range checkTests {
		for _, uri := range tt.accept {
			if err := redirecturi.Check(uri); err != nil {
				t.Errorf("%s: Check(%.100q) = %v, want nil", tt.name, uri, err)
			}
		}
		for _, uri := range tt.refuse {
			if err := redirecturi.Check(uri); err == nil || !strings.HasPrefix(err.Error(), "must ") {
				t.Errorf("%s: Check(%.100q) = %v, want an error that names the rule", tt.name, uri, err)
			}
		}
	}
	if err := redirecturi.Check(""); err != nil {
		t.Errorf("Check of an absent URI = %v, want nil", err)
	}
}

// The error is about the first broken rule, in the order of these rows.
func TestCheckMessage(t *testing.T) {
	const brackets = "must not have brackets outside of an IPv6 host and the query"
	for _, tt := range []struct{ name, uri, want string }{
		{name: "length", uri: "ftp://" + strings.Repeat("#", 2048), want: "must be at most 2048 bytes"},
		{name: "fragment", uri: "ftp:// #", want: "must not have a fragment"},
		{name: "characters", uri: "ftp://\"%zz", want: "must have only the characters of RFC 3986"},
		{name: "escape", uri: "ftp://%zz", want: "must have two hex digits after each percent sign"},
		{name: "escaped control", uri: "ftp://%0a", want: "must not have an escaped control character or backslash"},
		{name: "no scheme", uri: "//user@x", want: "must be an absolute URI"},
		{name: "another scheme", uri: "ftp://user@x", want: "must be https, http to localhost, 127.0.0.1 or [::1], " +
			"or a private-use scheme with a dot in its name"},
		{name: "userinfo", uri: "https://user@x/[/..", want: "must not have userinfo"},
		{name: "brackets", uri: "https://x_y/[/..", want: brackets},
		{name: "dot segments", uri: "https://x_y/..", want: "must not have dot segments"},
		{name: "brackets, app", uri: "com.example.app://[x]", want: brackets},
		{name: "opaque", uri: "com.example.app:done", want: "must have a slash after its private-use scheme"},
		{name: "no host", uri: "https:/x", want: "must have a host"},
		{name: "port", uri: "https://x_y:0", want: "must have a port from 1 to 65535, or none"},
		{name: "host", uri: "http://x_y",
			want: "must have a DNS name, an IPv4 or a bracketed IPv6 address without zone as its host"},
		{name: "http", uri: "http://app.example.com", want: "must be https unless its host is localhost, 127.0.0.1 or [::1]"},
	} {
		if err := redirecturi.Check(tt.uri); err == nil || err.Error() != tt.want {
			t.Errorf("%s: Check(%.100q) = %v, want %s", tt.name, tt.uri, err, tt.want)
		}
	}
}

// Each byte value in each part of a URI.
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
			if err := redirecturi.Check(uri); (err == nil) != want {
				t.Errorf("Check(%q) = %v, want accepted %t", uri, err, want)
			}
		}
	}
}

// TestCheck covers the characters of URIs. Callers give CheckCharacters other text, too.
func TestCheckCharacters(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{text: ""},
		{text: "azAZ09-._~:/?[]@!$&'()*+,;="},
		{text: "%20%41%2f%2F%7e%80%fF%25%2500"},
		{text: "a#%", want: "must have only the characters of RFC 3986"},
		{text: "%+1", want: "must have two hex digits after each percent sign"},
		{text: "%5c", want: "must not have an escaped control character or backslash"},
	} {
		if err := redirecturi.CheckCharacters(tt.text); (err != nil || tt.want != "") && fmt.Sprint(err) != tt.want {
			t.Errorf("CheckCharacters(%q) = %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestValidPort(t *testing.T) {
	for want, ports := range map[bool][]string{
		true: {"1", "9", "10", "80", "443", "8080", "65535"},
		false: {"", "0", "00", "01", "080", "65536", "99999", "123456789012345678901", "-1", "+80", " 80", "80 ", "8_0",
			"0x50", "80a", "a", "1e2", "80:", ":80", "8.0", "٣"},
	} {
		for _, port := range ports {
			if got := redirecturi.ValidPort(port); got != want {
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

// FuzzCheck compares what Check accepts with net/url and with simpler, laxer rules.
func FuzzCheck(f *testing.F) {
	for _, tt := range checkTests {
		for _, uri := range slices.Concat(tt.accept, tt.refuse) {
			f.Add(uri)
		}
	}
	f.Fuzz(func(t *testing.T, uri string) {
		if uri == "" || redirecturi.Check(uri) != nil {
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
			// net/url may not accept the app's own authority as a host.
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
