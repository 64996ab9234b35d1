package main

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// uriTests is RFC 3986 as the contract narrows it.
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
			"https://xn--bcher-kva.example/cb", "https://a--b.example/", "https://localhost/", "https://a/", "https://1a.b2/", "https://1.2.3.a/",
			https + "//evil.com", https + "/%2F%2Fevil.com", https + "//", https + "/a//b",
			https + "/cb?next=https://evil.com", https + "/cb?code=x&state=y", https + "/cb?a=1&a=2", https + "/?a/b?c@d:e",
			https + "/a@b", https + "/a:b", https + "/~u/-._!$&'()*+,;=:@", https + "/a%20b%C3%A9%c2%85%25", https + "/%252e%252e/", https + "/%23",

			// Ports.
			https + ":8443/cb", https + ":443/cb", https + ":1", https + ":65535?x", "https://192.0.2.1:8443/", "https://[2001:db8::1]:8443/",

			// Lengths.
			padded(2048), "https://" + label(63) + ".example/", "https://" + host(253) + "/", "https://" + host(253) + ":65535/", "https://" + host(252),

			// Last labels that only look like numbers.
			"https://example.0a/", "https://example.1e9/", "https://example.0xg/", "https://example.x0/", "https://0x7f.example/", "https://10.example/", "https://a.0-1/",

			// Addresses.
			"https://192.0.2.1/cb", "https://0.0.0.0/", "https://255.255.255.255/", "https://127.0.0.2/",
			"https://[::1]/", "https://[2001:DB8::1]/", "https://[::]/", "https://[::ffff:192.0.2.1]/", "https://[1:2:3:4:5:6:7:8]", "https://[::1]?[x]",

			// Loopback.
			"http://localhost/cb", "http://localhost:3000/cb", "http://LocalHost/cb", "HTTP://localhost", "http://localhost:65535",
			"http://127.0.0.1:51004/cb", "http://127.0.0.1", "http://[::1]:51004/cb", "http://[::1]",

			// Private-use schemes.
			"com.example.app:/oauth2redirect", "com.example.app:/", "com.example.app://done", "com.example.app://", "com.example.app:///done", "com.example.app:/done?x=1",
			"com.example.app://done?a[0]=@", "com.example.app:/a@b:c", "COM.Example.App:/Done", "a.b:/", "a.:/", "com.example-app+1.x:/done",
			"com.example.app://under_score.:0", "com.example.app://a:b:c/d", "com.example.app://%61", "com.example.app://[::1]", "com.example.app://[::1]:x/y", "javascript.x:/a",

			// What looks like a dot segment, and the query, which is the caller's.
			https + "/.well-known/x", https + "/...", https + "/a..", https + "/..a", https + "/;..", https + "/a;..", https + "/a.;b", https + "?../..", https + "/x?/../%2e%2e/", https + "/a%2f.b",
			https + "?a[0]=1&b[]=2", https + "/?]x[",
		},
		false: {
			// Schemes.
			"http://app.example.com/cb", "http://127.0.0.2/cb", "http://127.0.0.1.example.com/", "http://127.1/", "http://0x7f.0.0.1/", "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::2]/",
			"http://localhost.evil.com", "http://evil-localhost", "http://localhost.", "http://localhost.localdomain", "http://", "http:///localhost", "http:localhost", "http:/localhost/cb",
			"myapp://cb", "myapp:/cb", "myapp:", "urn:ietf:wg:oauth:2.0:oob", "javascript:alert(1)", "JaVaScRiPt:alert(1)", "javascript://app.example.com/%0aalert(1)", "javascript:/x.y",
			"data:text/html;base64,PHNjcmlwdD4=", "vbscript:x", "file:///etc/passwd", "blob:https://app.example.com/1", "view-source:https://app.example.com/", "about:blank",
			"ftp://app.example.com/", "ws://app.example.com/", "wss://app.example.com/", "mailto:a@app.example.com", "tel:+1", "content:x", "ldap://app.example.com/", "gopher://app.example.com/", "intent://x/", "httpss://app.example.com/", "http+unix://localhost/",
			"1com.example:/x", ".com:/x", "-a.b:/x", "+a.b:/x", "com_example.app:/x", "com.exa%6dple:/x", "://app.example.com/", ":", "com.example.app", "/com.example.app:/x",
			"//evil.com/cb", "/cb", "cb", "?x=1", "app.example.com/cb", "app.example.com:443/cb", "localhost:3000/cb",

			// White space, control characters, beyond ASCII.
			" ", " " + https, https + "/cb ", https + "/c b", "\t" + https, https + "/cb\n", https + "/cb\r\nSet-Cookie:x=1", https + "/\x00", https + "/\x7f", "https://app.exa\tmple.com/", "java\nscript:x",
			"https://\u0430pp.example.com/", https + "/caf\u00e9", https + "/\u202e", "https://b\u00fccher.example/", "https://app\u3002example.com/", "https://app.example\uff0ecom/", "\uff48ttps://app.example.com/", https + "/\u00a0", https + "/\xff", "\ufeff" + https,

			// Userinfo and its look-alikes.
			"https://user:pw@app.example.com/cb", "https://@app.example.com/", "https://:@app.example.com/", "https://app.example.com@evil.com/cb", "https://app.example.com%40evil.com/", "https://a@b@app.example.com/", "http://localhost@evil.com/", "http://localhost:80@evil.com/",
			`https://evil.com\@app.example.com/cb`, `https://app.example.com\.evil.com`, `https:\\evil.com\cb`, `https:/\evil.com`, https + `/\..\x`,
			"com.example.app://user@done", "com.example.app://user:pw@done", "com.example.app://@", "com.example.app://a:b@c?d",

			// Hosts.
			"https:///evil.com/cb", "https://", "https:", "https:/", "https:app.example.com", "https:/app.example.com/cb", "https://?x", "https://:443/", "https:////app.example.com/",
			"https://ex%61mple.com/", "https://app.example.com%2f/", "https://app.example.com%00.evil.com/", "https://app.example.com./", "https://app.example.com.:443/", "https://.example.com/", "https://app..example.com/", "https://.", "https://..",
			"https://-a.example/", "https://a-.example/", "https://a.-example/", "https://a.example-/", "https://-/", "https://a_b.example/", "https://_dmarc.example/", "https://*.example.com/", "https://a,b.example/", "https://a;b/", "https://a!b/", "https://$a/", "https://a(b)/", "https://a=b/", "https://a'b/", "https://a+b/", "https://a&b/", "https://~a/",
			"https://" + label(64) + ".example/", "https://example." + label(64), "https://" + host(254) + "/", "https://" + host(254) + ":443/",
			"https://example.1/", "https://example.123/", "https://example.0x1f/", "https://example.0X1F/", "https://example.0x/", "https://1/", "https://0x7f000001/", "https://2130706433/", "https://0/",

			// IPv4.
			"https://192.0.2.256/", "https://256.0.2.1/", "https://192.0.2/", "https://192.0.2.1.1/", "https://192.0.2.01/", "https://0300.0.2.1/", "https://192.0.2.0x1/", "https://192.0.2.1./", "https://.192.0.2.1/", "https://192.0..1/", "https://127.1/", "https://192.0.2.-1/", "https://192.0.2.1%20/",

			// IPv6.
			"https://[::1]x/", "https://::1/", "https://[::1", "https://::1]/", "https://[]/", "https://[", "https://]", "https://[]", "https://[::1]]/", "https://[[::1]]/", "https://[::1][::1]/", "https://a[::1]/", "https://[::1]a:443/", "https://[:::1]/", "https://[1:2:3:4:5:6:7]/", "https://[1:2:3:4:5:6:7:8:9]/", "https://[::12345]/", "https://[::g]/", "https://[::256.0.0.1]/",
			"https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[fe80::1%25]/", "https://[::ffff:192.0.2.1%251]/", "https://[192.0.2.1]/", "https://[v1.x]/", "https://[vF.a:b]/", "https://[app.example.com]/", "https://[%3A%3A1]/", "http://[::1%25lo]/",

			// Ports.
			https + ":", https + ":/", https + ":?x", https + ":0/", https + ":00/", https + ":65536/", https + ":080/", https + ":01", https + ":99999/", https + ":123456789012345678901/", https + ":80a", https + ":a80/", https + ":+80/", https + ":-1/", https + ":8_0/", https + ":0x50/", https + ":80:80/", https + ":%38/",
			"http://localhost:0/", "http://localhost:/", "http://localhost:080/", "http://127.0.0.1:65536/", "http://[::1]:/", "http://[::1]:0/", "https://[::1]:65536/", "https://192.0.2.1:/",

			// Brackets.
			https + "/[", https + "/]", https + "/a[0]", https + "/[::1]?x", "com.example.app:/a[0]", "com.example.app://a/[", "com.example.app://[", "com.example.app://]", "com.example.app://[]", "com.example.app://[x]/", "com.example.app://a[::1]", "com.example.app://[::1]x", "com.example.app://[::1]:[", "com.example.app://[::1%25a]",

			// Fragments.
			https + "/cb#frag", https + "/cb#", https + "#", https + "/cb?x#y", "#", "com.example.app:/done#", "http://localhost/#/route",

			// Escapes.
			https + "/%zz", https + "/%2", https + "/%", https + "/%%41", https + "/%2g", https + "/%g2", https + "?%", https + "?x=%4", "com.example.app://%", "com.example.app:/%0",
			https + "/%00", https + "/%0a", https + "/%0D", https + "/%1f", https + "/%7f", https + "/%7F", https + "/%5c", https + "/%5C", https + "?x=%0a", https + "?x=%5c", "com.example.app:/%09", "com.example.app://%5C",

			// Dot segments.
			https + "/../evil", https + "/%2e%2e/evil", https + "/./x", https + "/..", https + "/.", https + "/a/..", https + "/a/.?x", https + "/..?x", https + "//..//", https + "/%2E", https + "/.%2e", https + "/%2e.", https + "/%2E%2e?x",
			https + "/..;x/", https + "/.;x", https + "/..;", https + "/%2e%2e;x=1/a", https + "/a;b/../c", https + "/..%3bx", https + "/..%3Bx/a", https + "/.%3b", https + "/a/%2e%2E%3bx",
			https + "/a%2F..", https + "/a%2f..%2fb", https + "/..%2Fevil", https + "/..%2fevil", https + "/%2F..", https + "/%2e%2e%2fevil", https + "/a%2f%2e", https + "/a%2f..;x",
			"http://localhost/../x", "com.example.app:/../x", "com.example.app:/.", "com.example.app://a/..", "com.example.app:///..%2f",

			// Opaque.
			"com.example.app:done", "com.example.app:", "com.example.app:?x=1", "com.example.app:..", "com.example.app:done/x", "com.example.app:%2Fdone", "com.example.app:@/",

			padded(2049), padded(60 << 10), strings.Repeat("a", 2049),
		},
	}
}

// Both members take and refuse the same, and what is taken is kept byte for byte.
func TestURIs(t *testing.T) {
	for accept, uris := range uriTests() {
		for _, uri := range uris {
			if got := checkURI(uri); (got == nil) != accept {
				t.Errorf("checkURI(%.100q) = %v, want accepted %t", uri, got, accept)
				continue
			}
			if strings.ToValidUTF8(uri, "") != uri {
				continue // can't stand in a body
			}
			for _, member := range []string{"redirect_uri", "cancel_uri"} {
				r, _, err := parseSessionRequest(encodeJSON(map[string]string{"end_user_id": "eu_1", member: uri}))
				if got := map[string]string{"redirect_uri": r.redirectURI, "cancel_uri": r.cancelURI}[member]; got != uri {
					t.Errorf("%s = %.100q, want %.100q", member, got, uri)
				}
				switch e, _ := errors.AsType[*apiError](err); {
				case accept && err == nil:
				case accept:
					t.Errorf("%s %.100q: %v", member, uri, err)
				case e == nil || e.name != "bad_request" || !strings.HasPrefix(e.message, member+" must "):
					t.Errorf("%s %.100q: error = %v, want bad_request naming it", member, uri, err)
				}
			}
		}
	}
	if err := checkURI(""); err != nil {
		t.Errorf("checkURI of no URI = %v", err)
	}
}

func TestURICharacters(t *testing.T) {
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
			if err := checkURI(uri); (err == nil) != want {
				t.Errorf("checkURI(%q) = %v, want accepted %t", uri, err, want)
			}
		}
	}
}

func TestParseSessionRequest(t *testing.T) {
	body := `{"cancel_uri":"com.example.app:\/x","x":1,"end_user_id":"\u0065u_1","redirect_uri":null,"institution_id":""}`
	got, unknown, err := parseSessionRequest([]byte(body))
	want := sessionRequest{endUserID: "eu_1", cancelURI: "com.example.app:/x"}
	if err != nil || got != want || !slices.Equal(unknown, []string{"x"}) {
		t.Errorf("parseSessionRequest = %+v, %q, %v, want %+v", got, unknown, err, want)
	}
}

func TestIDs(t *testing.T) {
	const most = 1 << 20
	every := make([]byte, 0, 256)
	for c := range 256 {
		if '!' <= c && c <= '~' {
			every = append(every, byte(c))
			continue
		}
		if id := "a" + string([]byte{byte(c)}); checkID(id, most) == nil {
			t.Errorf("checkID(%q) takes it", id)
		}
	}
	if err := checkID(string(every), most); err != nil {
		t.Errorf("checkID(%q) = %v", every, err)
	}
	for n, ok := range map[int]bool{0: false, 1: true, 64: true, 65: true, 128: true, 129: false, 10000: false} {
		if err := checkEndUserID(strings.Repeat("x", n)); (err == nil) != ok {
			t.Errorf("end_user_id of %d bytes: %v", n, err)
		}
	}
	for n, ok := range map[int]bool{0: true, 1: true, 64: true, 65: false, 128: false} {
		if err := checkInstitutionID(strings.Repeat("x", n)); (err == nil) != ok {
			t.Errorf("institution_id of %d bytes: %v", n, err)
		}
	}
}

func TestNewSession(t *testing.T) {
	now := time.Unix(1_700_000_000, 999_999_999)
	request := sessionRequest{endUserID: "eu_1", institutionID: "10", redirectURI: "https://a.example/?a&b", cancelURI: "a.b:/"}
	ulidText := regexp.MustCompile(`^[0-7][0-9a-hjkmnp-tv-z]{25}$`)
	secretText := regexp.MustCompile(`^[A-Za-z0-9_-]{22,}$`)
	var timePart string
	seen := map[string]bool{}
	for range 1000 {
		got, secret := newSession(request, "acme", now, time.Hour)
		if !ulidText.MatchString(got.ID) {
			t.Fatalf("id = %q, want a ULID in lower case", got.ID)
		}
		if !secretText.MatchString(secret) {
			t.Fatalf("session_id = %q, want 22 or more of A-Za-z0-9_-", secret)
		}
		if seen[got.ID[10:]] || seen[secret] {
			t.Fatalf("id %q or session_id %q was there before", got.ID, secret)
		}
		seen[got.ID[10:]], seen[secret] = true, true
		timePart = got.ID[:10]
		want := session{1, got.ID, "acme", "eu_1", "10", "https://a.example/?a&b", "a.b:/", 1_700_000_000, 1_700_003_600}
		if got != want {
			t.Fatalf("session = %+v, want %+v", got, want)
		}
		if strings.Contains(string(encodeJSON(got)), secret) {
			t.Fatalf("record %s has the secret %s", encodeJSON(got), secret)
		}
	}
	// The letters of 2023-11-14T22:13:20.999Z in Crockford's base 32.
	var milliseconds int64
	for _, c := range timePart {
		milliseconds = milliseconds<<5 | int64(strings.IndexRune("0123456789abcdefghjkmnpqrstvwxyz", c))
	}
	if milliseconds != now.UnixMilli() {
		t.Errorf("the id's time = %d, want %d", milliseconds, now.UnixMilli())
	}
}

// Many at the same time, which must not share or wait for a source of entropy.
func TestNewSessionConcurrently(t *testing.T) {
	t.Parallel()
	const each = 500
	found := make(chan []string)
	for range 8 {
		go func() {
			var ids []string
			for range each {
				s, secret := newSession(sessionRequest{}, "", time.Unix(1, 0), 0)
				ids = append(ids, s.ID, secret)
			}
			found <- ids
		}()
	}
	seen := map[string]bool{}
	for range 8 {
		for _, id := range <-found {
			seen[id] = true
		}
	}
	if len(seen) != 2*8*each {
		t.Errorf("%d different ids, want %d", len(seen), 2*8*each)
	}
}

func TestSessionKey(t *testing.T) {
	// FIPS 180-2's example.
	const want = "p:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if got := sessionKey("p:", "abc"); got != want {
		t.Errorf("sessionKey = %s, want %s", got, want)
	}
}

var (
	absolute    = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*):(//[^/?]*)?([^?]*)`)
	webSchemes  = regexp.MustCompile(`(?i)^https?$`)
	dotSegments = regexp.MustCompile(`(^|/)\.\.?($|[/;])`)
)

// FuzzURI holds what checkURI takes against net/url and against plainer, laxer rules.
func FuzzURI(f *testing.F) {
	for _, uris := range uriTests() {
		for _, uri := range uris {
			f.Add(uri)
		}
	}
	f.Fuzz(func(t *testing.T, uri string) {
		if uri == "" || checkURI(uri) != nil {
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
		if strings.EqualFold(scheme, "http") && !slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, strings.ToLower(u.Hostname())) {
			t.Errorf("http to %q", u.Hostname())
		}
	})
}

// The record's own encoder says what encoding/json would.
func TestSessionEncode(t *testing.T) {
	texts := []string{"", "a", `"`, `\`, "<&>", "ü", "\x7f", "\n", "\u2028", "a\xffb", "😀", strings.Repeat("x", 300)}
	for i, text := range texts {
		other := texts[len(texts)-1-i]
		s := session{Version: 1, ID: text, ClientID: text, EndUserID: other, InstitutionID: text, RedirectURI: other, CancelURI: text, CreatedAt: int64(i), ExpiresAt: -1}
		if got, want := string(s.encode()), string(encodeJSON(s)); got != want {
			t.Errorf("encode = %s, want %s", got, want)
		}
	}
}
