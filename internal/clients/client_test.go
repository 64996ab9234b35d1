package clients_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"authsession/internal/clients"
	"authsession/internal/redirecturi"
	"authsession/internal/testkit"
)

// newClient returns a client with these members in the clients file.
func newClient(t testing.TB, members string) *clients.Client {
	t.Helper()
	f, err := open(t, `{"clients": {"acme": `+members+`}}`)
	testkit.Must(t, err)
	return f.Find("acme")
}

// The rows include tricks that have broken the matching of redirect URIs elsewhere.
func TestClientAllowsURI(t *testing.T) {
	const (
		cb    = "https://acme.com/cb"
		local = "http://127.0.0.1/cb"
	)
	for _, tt := range []struct {
		name, entry, uri string
		want             bool
	}{
		{name: "itself", entry: cb, uri: cb, want: true},
		{name: "a query", entry: cb, uri: cb + "?state=x", want: true},
		{name: "an empty query", entry: cb, uri: cb + "?", want: true},
		{name: "query with ? and /", entry: cb, uri: cb + "?a=/?b=https://evil.com/", want: true},
		{name: "a query in the entry", entry: cb + "?a=1", uri: cb + "?a=1", want: true},
		{name: "a query in the entry, none sent", entry: cb + "?a=1", uri: cb},
		{name: "a query in the entry, more of it", entry: cb + "?a=1", uri: cb + "?a=1&b=2"},
		{name: "a query in the entry and a second ?", entry: cb + "?a=1", uri: cb + "?a=1?b"},
		{name: "an empty query in the entry", entry: cb + "?", uri: cb + "?", want: true},
		{name: "an empty query in the entry, another", entry: cb + "?", uri: cb + "?a=1"},
		{name: "userinfo", entry: cb, uri: "https://acme.com@evil.com/cb"},
		{name: "userinfo before the same host", entry: cb, uri: "https://evil@acme.com/cb"},
		{name: "fragment", entry: cb, uri: cb + "#"},
		{name: "longer host", entry: cb, uri: "https://acme.com.evil.com/cb"},
		{name: "host that ends like it", entry: cb, uri: "https://evilacme.com/cb"},
		{name: "trailing dot of the host", entry: cb, uri: "https://acme.com./cb"},
		{name: "host in upper case", entry: cb, uri: "https://ACME.com/cb"},
		{name: "scheme in upper case", entry: cb, uri: "HTTPS://acme.com/cb"},
		{name: "http", entry: cb, uri: "http://acme.com/cb"},
		{name: "default port", entry: cb, uri: "https://acme.com:443/cb"},
		{name: "another port", entry: cb, uri: "https://acme.com:8443/cb"},
		{name: "port of https to loopback", entry: "https://127.0.0.1/cb", uri: "https://127.0.0.1:8443/cb"},
		{name: "backslash", entry: cb, uri: `https://evil.com\@acme.com/cb`},
		{name: "tab", entry: cb, uri: "https://acme.com/\tcb"},
		{name: "path that begins like it", entry: cb, uri: cb + "evil"},
		{name: "slash after", entry: cb, uri: cb + "/"},
		{name: "no path", entry: "https://acme.com/", uri: "https://acme.com"},
		{name: "no path, itself", entry: "https://acme.com", uri: "https://acme.com", want: true},
		{name: "path in upper case", entry: cb, uri: "https://acme.com/CB"},
		{name: "escaped letter", entry: cb, uri: "https://acme.com/%63b"},
		{name: "escaped slash", entry: "https://acme.com/a/cb", uri: "https://acme.com/a%2Fcb"},
		{name: "escaped ?", entry: cb, uri: cb + "%3Fx"},
		{name: "doubled slash", entry: cb, uri: "https://acme.com//cb"},
		{name: "dot segment", entry: cb, uri: "https://acme.com/x/../cb"},
		{name: "escaped dot segment", entry: cb, uri: "https://acme.com/x/%2e%2e/cb"},
		{name: "parameter", entry: cb, uri: cb + ";x=1"},
		{name: "* in what is sent", entry: cb, uri: "https://acme.com/*"},
		{name: "a URI of its own in the query", entry: cb, uri: "https://evil.com/cb?" + cb},
		{name: "loopback, any port", entry: local, uri: "http://127.0.0.1:49152/cb", want: true},
		{name: "loopback, no port", entry: local, uri: local, want: true},
		{name: "loopback, any port, URI in the query", entry: local, uri: "http://127.0.0.1:1/cb?x=http://y:2/", want: true},
		{name: "loopback, port in the entry", entry: "http://127.0.0.1:8000/cb", uri: "http://127.0.0.1:8000/cb", want: true},
		{name: "loopback, port in the entry, another", entry: "http://127.0.0.1:8000/cb", uri: "http://127.0.0.1:8001/cb"},
		{name: "loopback, port in the entry, none sent", entry: "http://127.0.0.1:8000/cb", uri: "http://127.0.0.1/cb"},
		{name: "loopback, query in the entry, any port", entry: local + "?a=1", uri: "http://127.0.0.1:9/cb?a=1", want: true},
		{name: "loopback, query in the entry, more of it", entry: local + "?a=1", uri: "http://127.0.0.1:9/cb?a=1&b"},
		{name: "loopback, query in the entry, none sent", entry: local + "?a=1", uri: "http://127.0.0.1:9/cb"},
		{name: "loopback, colon in the query alone", entry: local, uri: "http://127.0.0.1/cb?x=:1", want: true},
		{name: "loopback, another path", entry: local, uri: "http://127.0.0.1:9/cb/x"},
		{name: "loopback, another host", entry: local, uri: "http://localhost:9/cb"},
		{name: "loopback, host in the port's place", entry: local, uri: "http://127.0.0.1:9@evil.com/cb"},
		{name: "loopback, longer host", entry: local, uri: "http://127.0.0.1.evil.com:9/cb"},
		{name: "loopback, https", entry: local, uri: "https://127.0.0.1:9/cb"},
		{name: "loopback, scheme in upper case", entry: local, uri: "HTTP://127.0.0.1:9/cb"},
		{name: "loopback, scheme in upper case", entry: "HTTP://localhost/", uri: "HTTP://localhost:9/", want: true},
		{name: "loopback, no path", entry: "http://127.0.0.1", uri: "http://127.0.0.1:9", want: true},
		{name: "loopback, no path, one sent", entry: "http://127.0.0.1", uri: "http://127.0.0.1:9/"},
		{name: "localhost, any port", entry: "http://localhost/cb", uri: "http://localhost:9/cb", want: true},
		{name: "IPv6, any port", entry: "http://[::1]/cb", uri: "http://[::1]:9/cb", want: true},
		{name: "IPv6, another form", entry: "http://[::1]/cb", uri: "http://[0:0:0:0:0:0:0:1]:9/cb"},
		{name: "app's scheme", entry: "com.acme.app:/done", uri: "com.acme.app:/done", want: true},
		{name: "app's scheme, another form", entry: "com.acme.app:/done", uri: "com.acme.app:///done"},
		{name: "app's scheme in upper case", entry: "com.acme.app:/done", uri: "COM.acme.app:/done"},
	} {
		c := newClient(t, fmt.Sprintf(`{"redirect_uris": ["https://first.example/", %q, "http://127.0.0.1:7/x"]}`, tt.entry))
		if got := c.AllowsURI(tt.uri); got != tt.want {
			t.Errorf("%s: AllowsURI(%q) with the entry %q = %t, want %t", tt.name, tt.uri, tt.entry, got, tt.want)
		}
		if tt.want && redirecturi.Check(tt.uri) != nil {
			t.Errorf("%s: AllowsURI(%q) = true for an invalid URI", tt.name, tt.uri)
		}
	}
}

// Each URI that AllowsURI accepts begins with an entry, or with the part of an entry before its port.
func FuzzClientAllowsURI(f *testing.F) {
	entries := []string{"https://acme.com/cb", "https://acme.com/q?a=1", "http://127.0.0.1/cb", "http://[::1]:9/cb"}
	c := newClient(f, `{"redirect_uris": ["`+strings.Join(entries, `", "`)+`"]}`)
	for _, uri := range append(entries, "http://127.0.0.1:80/cb?x", "https://acme.com/cb?x", "https://acme.com@evil/cb") {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		if uri == "" || redirecturi.Check(uri) != nil || !c.AllowsURI(uri) {
			return
		}
		if slices.ContainsFunc(entries, func(entry string) bool {
			rest, found := strings.CutPrefix(uri, entry)
			return found && (rest == "" || rest[0] == '?' && !strings.Contains(entry, "?"))
		}) {
			return
		}
		rest, found := strings.CutPrefix(uri, "http://127.0.0.1:")
		path := strings.TrimLeft(rest, "0123456789")
		if !found || path != "/cb" && !strings.HasPrefix(path, "/cb?") {
			t.Errorf("AllowsURI(%q) = true", uri)
		}
	})
}

func TestClientAllows(t *testing.T) {
	all, none := newClient(t, `{}`), newClient(t, `{"redirect_uris": [], "institution_ids": [], "permissions": []}`)
	some := newClient(t, `{"redirect_uris": ["https://acme.com/cb"], "institution_ids": ["10", "11"],
		"permissions": ["a", "b"]}`)
	for _, tt := range []struct {
		name            string
		client          *clients.Client
		uri             string
		institution     string
		permissions     []string
		wantURI         bool
		wantInstitution bool
		wantPermissions bool
	}{
		{name: "no rules", client: all, uri: "https://evil.com/", institution: "99", permissions: []string{"x"},
			wantURI: true, wantInstitution: true, wantPermissions: true},
		{name: "no rules, absent", client: all, wantURI: true, wantInstitution: true, wantPermissions: true},
		{name: "empty lists", client: none, uri: "https://acme.com/cb", institution: "10", permissions: []string{"a"}},
		{name: "empty lists, absent", client: none, wantURI: true, wantInstitution: true, wantPermissions: true},
		{name: "listed", client: some, uri: "https://acme.com/cb", institution: "11", permissions: []string{"b", "a"},
			wantURI: true, wantInstitution: true, wantPermissions: true},
		{name: "lists, absent", client: some, wantURI: true, wantInstitution: true, wantPermissions: true},
		{name: "not listed", client: some, uri: "https://acme.com/x", institution: "1", permissions: []string{"a", "c"}},
		{name: "other case", client: some, uri: "https://acme.com/CB", institution: "1o", permissions: []string{"A"}},
	} {
		if got := tt.client.AllowsURI(tt.uri); got != tt.wantURI {
			t.Errorf("%s: AllowsURI(%q) = %t, want %t", tt.name, tt.uri, got, tt.wantURI)
		}
		if got := tt.client.AllowsInstitution(tt.institution); got != tt.wantInstitution {
			t.Errorf("%s: AllowsInstitution(%q) = %t, want %t", tt.name, tt.institution, got, tt.wantInstitution)
		}
		if got := tt.client.AllowsPermissions(tt.permissions); got != tt.wantPermissions {
			t.Errorf("%s: AllowsPermissions(%q) = %t, want %t", tt.name, tt.permissions, got, tt.wantPermissions)
		}
	}
	if all.Permissions != nil || none.Permissions == nil || !slices.Equal(some.Permissions, []string{"a", "b"}) {
		t.Errorf("Permissions = %#v, %#v and %#v, want nil, an empty list, a and b",
			all.Permissions, none.Permissions, some.Permissions)
	}
}

func TestClientAllow(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		perMinute int
		atOnce    int
		wantWait  time.Duration // for the next session
	}{
		{perMinute: 1, atOnce: 1, wantWait: time.Minute},
		{perMinute: 11, atOnce: 1, wantWait: 5454545455},
		{perMinute: 12, atOnce: 2, wantWait: 5 * time.Second},
		{perMinute: 600, atOnce: 100, wantWait: 100 * time.Millisecond},
		{perMinute: 1_000_000, atOnce: 166_666, wantWait: 60 * time.Microsecond},
	} {
		c := newClient(t, fmt.Sprintf(`{"sessions_per_minute": %d}`, tt.perMinute))
		atOnce := 0
		for c.Allow("acme", now) == 0 {
			atOnce++
		}
		if atOnce != tt.atOnce {
			t.Errorf("%d a minute: %d at once, want %d", tt.perMinute, atOnce, tt.atOnce)
		}
		isNear := func(got, want time.Duration) bool { return got >= want-1 && got <= want+time.Microsecond }
		wait := c.Allow("acme", now)
		if again := c.Allow("acme", now); !isNear(wait, tt.wantWait) || again != wait {
			t.Errorf("%d a minute: Allow = %s, then %s, want %s", tt.perMinute, wait, again, tt.wantWait)
		}
		if half := c.Allow("acme", now.Add(wait/2)); !isNear(half, wait/2) {
			t.Errorf("%d a minute: Allow after half of %s = %s", tt.perMinute, wait, half)
		}
		if first, second := c.Allow("acme", now.Add(wait)), c.Allow("acme", now.Add(wait)); first != 0 || second == 0 {
			t.Errorf("%d a minute: Allow after %s = %s, then %s, want one session", tt.perMinute, wait, first, second)
		}
	}
	if wait := newClient(t, `{}`).Allow("acme", now); wait != 0 {
		t.Errorf("Allow without sessions_per_minute = %s, want 0", wait)
	}
}

// Each client that is not listed has the whole rate of "*" to itself.
func TestClientAllowUnlisted(t *testing.T) {
	f, err := open(t, `{"clients": {"acme": {}, "*": {"sessions_per_minute": 1}}}`)
	testkit.Must(t, err)
	now := time.Now()
	for i := range 20_000 { // more than have a limiter at a time
		id := fmt.Sprint("client-", i)
		if first, second := f.Find(id).Allow(id, now), f.Find(id).Allow(id, now); first != 0 || second == 0 {
			t.Fatalf("Allow(%s) = %s, then %s, want one session", id, first, second)
		}
	}
	if first, second := f.Find("acme").Allow("acme", now), f.Find("acme").Allow("acme", now); first+second != 0 {
		t.Error("the rate of * limits a client that is listed")
	}
}
