package clients_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"authsession/internal/redirecturi"
)

// The tricks of what went wrong in others' matching of redirect URIs. Each row is an entry and what is sent.
func TestAllowsURI(t *testing.T) {
	const cb = "https://acme.com/cb"
	for _, tt := range []struct {
		what, entry, uri string
		want             bool
	}{
		{"itself", cb, cb, true},
		{"a query", cb, cb + "?state=x", true},
		{"an empty query", cb, cb + "?", true},
		{"a query with ? and /", cb, cb + "?a=/?b=https://evil.com/", true},
		{"a query in the entry", cb + "?a=1", cb + "?a=1", true},
		{"a query in the entry, none sent", cb + "?a=1", cb, false},
		{"a query in the entry, more of it", cb + "?a=1", cb + "?a=1&b=2", false},
		{"a query in the entry, other order", cb + "?a=1&b=2", cb + "?b=2&a=1", false},
		{"a query in the entry and a second ?", cb + "?a=1", cb + "?a=1?b", false},
		{"an empty query in the entry", cb + "?", cb + "?", true},
		{"an empty query in the entry, none sent", cb + "?", cb, false},
		{"an empty query in the entry, another", cb + "?", cb + "?a=1", false},

		{"userinfo", cb, "https://acme.com@evil.com/cb", false},
		{"userinfo with the entry's host as password", cb, "https://x:acme.com@evil.com/cb", false},
		{"userinfo before the same host", cb, "https://evil@acme.com/cb", false},
		{"fragment", cb, cb + "#", false},
		{"fragment with another host", cb, "https://evil.com#https://acme.com/cb", false},
		{"longer host", cb, "https://acme.com.evil.com/cb", false},
		{"host that ends like it", cb, "https://evilacme.com/cb", false},
		{"host below it", cb, "https://x.acme.com/cb", false},
		{"host above it", "https://x.acme.com/cb", cb, false},
		{"trailing dot of the host", cb, "https://acme.com./cb", false},
		{"host in upper case", cb, "https://ACME.com/cb", false},
		{"scheme in upper case", cb, "HTTPS://acme.com/cb", false},
		{"http", cb, "http://acme.com/cb", false},
		{"default port", cb, "https://acme.com:443/cb", false},
		{"default port in the entry", "https://acme.com:443/cb", cb, false},
		{"another port", cb, "https://acme.com:8443/cb", false},
		{"port of https to loopback", "https://127.0.0.1/cb", "https://127.0.0.1:8443/cb", false},
		{"backslash", cb, `https://evil.com\@acme.com/cb`, false},
		{"tab", cb, "https://acme.com/\tcb", false},
		{"space before", cb, " " + cb, false},
		{"NUL after", cb, cb + "\x00", false},
		{"no scheme", cb, "//acme.com/cb", false},

		{"longer path", cb, cb + "/more", false},
		{"path that begins like it", cb, cb + "evil", false},
		{"slash after", cb, cb + "/", false},
		{"slash after in the entry", cb + "/", cb, false},
		{"shorter path", cb, "https://acme.com/", false},
		{"no path", "https://acme.com/", "https://acme.com", false},
		{"no path in the entry", "https://acme.com", "https://acme.com/", false},
		{"no path, itself", "https://acme.com", "https://acme.com", true},
		{"no path, a query", "https://acme.com", "https://acme.com?x", true},
		{"path in upper case", cb, "https://acme.com/CB", false},
		{"escaped letter", cb, "https://acme.com/%63b", false},
		{"escaped slash", "https://acme.com/a/cb", "https://acme.com/a%2Fcb", false},
		{"escaped slash in the entry", "https://acme.com/a%2Fcb", "https://acme.com/a/cb", false},
		{"escape in lower case", "https://acme.com/a%2Fcb", "https://acme.com/a%2fcb", false},
		{"escape, itself", "https://acme.com/a%2Fcb", "https://acme.com/a%2Fcb", true},
		{"escaped ?", cb, cb + "%3Fx", false},
		{"doubled slash", cb, "https://acme.com//cb", false},
		{"dot segment", cb, "https://acme.com/x/../cb", false},
		{"escaped dot segment", cb, "https://acme.com/x/%2e%2e/cb", false},
		{"parameter", cb, cb + ";x=1", false},
		{"* in what is sent", cb, "https://acme.com/*", false},
		{"another entry's path in the query", cb, "https://evil.com/?https://acme.com/cb", false},
		{"a URI of its own in the query", cb, "https://evil.com/cb?" + cb, false},

		{"loopback, any port", "http://127.0.0.1/cb", "http://127.0.0.1:49152/cb", true},
		{"loopback, no port", "http://127.0.0.1/cb", "http://127.0.0.1/cb", true},
		{"loopback, any port and a query", "http://127.0.0.1/cb", "http://127.0.0.1:1/cb?state=x", true},
		{"loopback, any port and a query with a host", "http://127.0.0.1/cb", "http://127.0.0.1:1/cb?x=http://y:2/", true},
		{"loopback, port in the entry", "http://127.0.0.1:8000/cb", "http://127.0.0.1:8000/cb", true},
		{"loopback, port in the entry, another", "http://127.0.0.1:8000/cb", "http://127.0.0.1:8001/cb", false},
		{"loopback, port in the entry, none sent", "http://127.0.0.1:8000/cb", "http://127.0.0.1/cb", false},
		{"loopback, query in the entry, any port", "http://127.0.0.1/cb?a=1", "http://127.0.0.1:9/cb?a=1", true},
		{"loopback, query in the entry, more of it", "http://127.0.0.1/cb?a=1", "http://127.0.0.1:9/cb?a=1&b", false},
		{"loopback, query in the entry, none sent", "http://127.0.0.1/cb?a=1", "http://127.0.0.1:9/cb", false},
		{"loopback, colon in the query alone", "http://127.0.0.1/cb", "http://127.0.0.1/cb?x=:1", true},
		{"loopback, colon in the path", "http://127.0.0.1/cb", "http://127.0.0.1/:1/cb", false},
		{"loopback, another path", "http://127.0.0.1/cb", "http://127.0.0.1:9/cb/x", false},
		{"loopback, another host", "http://127.0.0.1/cb", "http://localhost:9/cb", false},
		{"loopback, host in the port's place", "http://127.0.0.1/cb", "http://127.0.0.1:9@evil.com/cb", false},
		{"loopback, longer host", "http://127.0.0.1/cb", "http://127.0.0.1.evil.com:9/cb", false},
		{"loopback, https", "http://127.0.0.1/cb", "https://127.0.0.1:9/cb", false},
		{"loopback, scheme in upper case", "http://127.0.0.1/cb", "HTTP://127.0.0.1:9/cb", false},
		{"loopback, scheme in upper case in both", "HTTP://127.0.0.1/cb", "HTTP://127.0.0.1:9/cb", true},
		{"loopback, no path", "http://127.0.0.1", "http://127.0.0.1:9", true},
		{"loopback, no path, a query", "http://127.0.0.1", "http://127.0.0.1:9?x", true},
		{"loopback, no path, one sent", "http://127.0.0.1", "http://127.0.0.1:9/", false},
		{"localhost, any port", "http://localhost/cb", "http://localhost:9/cb", true},
		{"localhost in upper case", "http://localhost/cb", "http://LOCALHOST:9/cb", false},
		{"IPv6, any port", "http://[::1]/cb", "http://[::1]:9/cb", true},
		{"IPv6, no port", "http://[::1]/cb", "http://[::1]/cb", true},
		{"IPv6, port in the entry", "http://[::1]:8/cb", "http://[::1]:9/cb", false},
		{"IPv6, another form", "http://[::1]/cb", "http://[0:0:0:0:0:0:0:1]:9/cb", false},

		{"app's scheme", "com.acme.app:/done", "com.acme.app:/done", true},
		{"app's scheme, a query", "com.acme.app:/done", "com.acme.app:/done?x", true},
		{"app's scheme, another form", "com.acme.app:/done", "com.acme.app:///done", false},
		{"app's scheme, longer", "com.acme.app:/done", "com.acme.app.evil:/done", false},
		{"app's scheme, port", "com.acme.app://x/done", "com.acme.app://x:9/done", false},
		{"app's scheme in upper case", "com.acme.app:/done", "COM.acme.app:/done", false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c := find(t, fmt.Sprintf(`{"redirect_uris": ["https://first.example/", %q, "http://127.0.0.1:7/x"]}`, tt.entry))
			if got := c.AllowsURI(tt.uri); got != tt.want {
				t.Errorf("AllowsURI(%q) with the entry %q = %t, want %t", tt.uri, tt.entry, got, tt.want)
			}
			if tt.want && redirecturi.Check(tt.uri) != nil {
				t.Errorf("%q is allowed, and no good URI", tt.uri)
			}
		})
	}
}

// No URI is allowed that does not begin with an entry, or with one up to its port.
func FuzzAllowsURI(f *testing.F) {
	entries := []string{"https://acme.com/cb", "https://acme.com/q?a=1", "http://127.0.0.1/cb", "http://[::1]:9/cb"}
	c := find(f, `{"redirect_uris": ["`+strings.Join(entries, `", "`)+`"]}`)
	for _, uri := range append(entries, "http://127.0.0.1:80/cb?x", "https://acme.com/cb?x", "https://acme.com@evil/cb") {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		if uri == "" || redirecturi.Check(uri) != nil || !c.AllowsURI(uri) {
			return
		}
		for _, entry := range entries {
			if rest, ok := strings.CutPrefix(uri, entry); ok && (rest == "" || rest[0] == '?' && !strings.Contains(entry, "?")) {
				return
			}
		}
		rest, ok := strings.CutPrefix(uri, "http://127.0.0.1:")
		path := strings.TrimLeft(rest, "0123456789")
		if !ok || path != "/cb" && !strings.HasPrefix(path, "/cb?") {
			t.Errorf("AllowsURI(%q) = true", uri)
		}
	})
}

// uris are n good URIs as JSON, every other one to loopback.
func uris(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(`"https://partner-%d.example.com/callback"`, i)
		if i%2 == 1 {
			all[i] = fmt.Sprintf(`"http://127.0.0.1/callback/of/partner/%d"`, i)
		}
	}
	return strings.Join(all, ", ")
}

// Judging a request makes no garbage, also where it has a rate.
func TestNoAllocation(t *testing.T) {
	c := find(t, `{"redirect_uris": [`+uris(50)+`], "institution_ids": ["10"], "permissions": ["a", "b"],
		"sessions_per_minute": 600}`)
	now, asked := time.Now(), []string{"a"}
	if n := testing.AllocsPerRun(100, func() {
		for _, uri := range []string{"https://partner-48.example.com/callback?state=1",
			"http://127.0.0.1:4321/callback/of/partner/49?state=1", "https://partner-99.example.com/callback"} {
			c.AllowsURI(uri)
		}
		c.AllowsInstitution("10")
		c.AllowsPermissions(asked)
		c.Take("acme", now)
	}); n != 0 {
		t.Errorf("judging a request makes %.0f allocations, want none", n)
	}
}

func BenchmarkAllowsURI(b *testing.B) {
	c := find(b, `{"redirect_uris": [`+uris(50)+`]}`)
	for name, uri := range map[string]string{
		"https":    "https://partner-48.example.com/callback?state=Zm9vYmFyYmF6",
		"loopback": "http://127.0.0.1:49152/callback/of/partner/49?state=Zm9vYmFyYmF6",
		"refused":  "https://partner-99.example.com/callback?state=Zm9vYmFyYmF6",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.AllowsURI(uri)
			}
		})
	}
}

func BenchmarkTake(b *testing.B) {
	c := find(b, `{"sessions_per_minute": 1000000}`)
	b.ReportAllocs()
	for b.Loop() {
		c.Take("acme", time.Now())
	}
}
