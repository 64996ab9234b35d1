package clients_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/clients"
	"authsession/internal/testkit"
)

// open reads a file that says this.
func open(t testing.TB, text string) (*clients.File, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "clients.json")
	write(t, file, text)
	return clients.Open(file, time.Minute, 168*time.Hour)
}

func write(t testing.TB, file, text string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
}

// replace writes the file as deployments do, all at once.
func replace(t testing.TB, file, text string) {
	t.Helper()
	write(t, file+".new", text)
	testkit.Must(t, os.Rename(file+".new", file))
}

// find returns the client "acme" of a file that says only this of it.
func find(t testing.TB, acme string) *clients.Client {
	t.Helper()
	f, err := open(t, `{"clients": {"acme": `+acme+`}}`)
	testkit.Must(t, err)
	return f.Find("acme")
}

func TestFind(t *testing.T) {
	both, err := open(t, `{"clients": {"acme": {"session_ttl": "1m"}, "*": {"session_ttl": "168h"}}}`)
	testkit.Must(t, err)
	one, err := open(t, `{"clients": {"acme": {"session_ttl": "1h30m"}, "é": {}}}`)
	testkit.Must(t, err)
	none, err := open(t, ` {"clients": {}} `)
	testkit.Must(t, err)
	for _, tt := range []struct {
		what string
		file *clients.File
		name string
		want time.Duration // -1: may do nothing
	}{
		{"listed", both, "acme", time.Minute},
		{"not listed", both, "other", 168 * time.Hour},
		{"another case", both, "Acme", 168 * time.Hour},
		{"called *", both, "*", 168 * time.Hour},
		{"listed, without *", one, "acme", 90 * time.Minute},
		{"listed, without limits", one, "é", 0},
		{"not listed, without *", one, "other", -1},
		{"another case, without *", one, "ACME", -1},
		{"called *, without *", one, "*", -1},
		{"with a space, without *", one, "acme ", -1},
		{"no client is listed", none, "acme", -1},
		{"no file", nil, "acme", 0},
	} {
		got := time.Duration(-1)
		if c := tt.file.Find(tt.name); c != nil {
			got = c.SessionTTL
		}
		if got != tt.want {
			t.Errorf("%s: Find(%q) has session_ttl %s, want %s", tt.what, tt.name, got, tt.want)
		}
	}
}

func TestRules(t *testing.T) {
	all, nothing := find(t, `{}`), find(t, `{"redirect_uris": [], "institution_ids": [], "permissions": []}`)
	some := find(t, `{"redirect_uris": ["https://acme.com/cb"], "institution_ids": ["10", "11"],
		"permissions": ["a", "b"]}`)
	for _, tt := range []struct {
		what                       string
		client                     *clients.Client
		uri, institution           string
		permissions                []string
		wantURI, wantInst, wantPer bool
	}{
		{"no rule", all, "https://evil.com/", "99", []string{"x"}, true, true, true},
		{"no rule, nothing given", all, "", "", nil, true, true, true},
		{"empty lists", nothing, "https://acme.com/cb", "10", []string{"a"}, false, false, false},
		{"empty lists, nothing given", nothing, "", "", nil, true, true, true},
		{"lists", some, "https://acme.com/cb", "11", []string{"b", "a"}, true, true, true},
		{"lists, nothing given", some, "", "", nil, true, true, true},
		{"lists, others", some, "https://acme.com/other", "1", []string{"a", "c"}, false, false, false},
		{"another case", some, "https://acme.com/CB", "1o", []string{"A"}, false, false, false},
	} {
		if got := tt.client.AllowsURI(tt.uri); got != tt.wantURI {
			t.Errorf("%s: AllowsURI(%q) = %t, want %t", tt.what, tt.uri, got, tt.wantURI)
		}
		if got := tt.client.AllowsInstitution(tt.institution); got != tt.wantInst {
			t.Errorf("%s: AllowsInstitution(%q) = %t, want %t", tt.what, tt.institution, got, tt.wantInst)
		}
		if got := tt.client.AllowsPermissions(tt.permissions); got != tt.wantPer {
			t.Errorf("%s: AllowsPermissions(%q) = %t, want %t", tt.what, tt.permissions, got, tt.wantPer)
		}
	}
	if all.Permissions != nil || nothing.Permissions == nil || len(nothing.Permissions) != 0 ||
		strings.Join(some.Permissions, " ") != "a b" {
		t.Errorf("Permissions = %#v, %#v and %#v, want nil, an empty list, a and b",
			all.Permissions, nothing.Permissions, some.Permissions)
	}
}

// The errors name the client, the member and the rule.
func TestBadFiles(t *testing.T) {
	const (
		acme      = `"clients": "acme": `
		notJSON   = "must be valid JSON without unpaired surrogate escapes, and nothing after the object"
		nameTwice = "must not give a member name twice in one object"
	)
	long := strings.Repeat("x", 129)
	for text, want := range map[string]string{
		``:                                      "must be one JSON object, at \"\", byte 0",
		`[]`:                                    "must be one JSON object",
		`null`:                                  "must be one JSON object",
		`{}`:                                    `must have the member "clients"`,
		`{"clients": {}} {}`:                    notJSON,
		`{"clients": {"acme": {`:                notJSON,
		`{"clients": null}`:                     `"clients": must be one JSON object`,
		`{"clients": []}`:                       `"clients": must be one JSON object`,
		`{"Clients": {}}`:                       `"Clients": is no member`,
		`{"clients": {}, "x": 1}`:               `"x": is no member`,
		"{\"clients\": {\"\xff\": {}}}":         "must be UTF-8",
		`{"clients": {}, "clients": {}}`:        nameTwice + `, at "/clients"`,
		`{"clients": {"acme": {}, "acme": {}}}`: nameTwice + `, at "/clients/acme"`,
		`{"clients": {"acme": {}, "\u0061cme": {}}}`:    `at "/clients/acme"`,
		`{"clients": {"": {}}}`:                         `"clients": "": must have a name of 1 to 128 bytes`,
		`{"clients": {"` + long + `": {}}}`:             `xxx": must have a name of 1 to 128 bytes`,
		`{"clients": {"acme": null}}`:                   acme + "must be one JSON object",
		`{"clients": {"acme": true}}`:                   acme + "must be one JSON object",
		`{"clients": {"\u202e": null}}`:                 `"clients": "\u202e": must be one JSON object`,
		`{"clients": {"*": {"redirect_uris": ["x"]}}}`:  `"*": "redirect_uris": entry 1 must be an absolute URI`,
		`{"clients": {"a": {}, "acme": {"ttl": "1h"}}}`: acme + `"ttl": is no member`,
		`{"clients": {"acme": {"Permissions": []}}}`:    acme + `"Permissions": is no member`,
		`{"clients": {"acme": {"x": [], "x": []}}}`:     `at "/clients/acme/x"`,
	} {
		wantError(t, text, want)
	}
	for members, want := range map[string]string{
		`"redirect_uris": null`:                                   "must be an array of strings",
		`"redirect_uris": "https://acme.com/cb"`:                  "must be an array of strings",
		`"redirect_uris": ["https://acme.com/cb", null]`:          "must be an array of strings",
		`"redirect_uris": [["https://acme.com/cb"]]`:              "must be an array of strings",
		`"redirect_uris": ["https://acme.com/cb", ""]`:            "entry 2 must be a URI without *",
		`"redirect_uris": ["https://*.acme.com/cb"]`:              "entry 1 must be a URI without *",
		`"redirect_uris": ["https://acme.com/*"]`:                 "entry 1 must be a URI without *",
		`"redirect_uris": ["*"]`:                                  "entry 1 must be a URI without *",
		`"redirect_uris": ["https://acme.com/a?x=*"]`:             "entry 1 must be a URI without *",
		`"redirect_uris": ["https://acme.com/cb#"]`:               "entry 1 must not have a fragment",
		`"redirect_uris": ["https://a@acme.com/cb"]`:              "entry 1 must not have userinfo",
		`"redirect_uris": ["http://acme.com/cb"]`:                 "entry 1 must be https unless its host is localhost",
		`"redirect_uris": ["https://acme.com/a/../cb"]`:           "entry 1 must not have dot segments",
		`"redirect_uris": ["https://acme.com/a b"]`:               "entry 1 must have only the characters of RFC 3986",
		`"redirect_uris": ["http://127.0.0.1:/cb"]`:               "entry 1 must have a port from 1 to 65535, or none",
		`"redirect_uris": ["myapp:/cb"]`:                          "entry 1 must be https, http to localhost",
		`"institution_ids": null`:                                 "must be an array of strings",
		`"institution_ids": [10]`:                                 "must be an array of strings",
		`"institution_ids": ["10", ""]`:                           "entry 2 must be 1 to 64 bytes of printable ASCII",
		`"institution_ids": ["1 0"]`:                              "entry 1 must be 1 to 64 bytes",
		`"institution_ids": ["é"]`:                                "entry 1 must be 1 to 64 bytes",
		`"institution_ids": ["` + long[:65] + `"]`:                "entry 1 must be 1 to 64 bytes",
		`"permissions": null`:                                     "must be an array of strings",
		`"permissions": "accounts"`:                               "must be an array of strings",
		`"permissions": ["a", "\u0000"]`:                          "entry 2 must be 1 to 64 bytes",
		`"permissions": ["a", "b", "a"]`:                          "must be at most 64 names, none twice",
		`"permissions": [` + names(65) + `]`:                      "must be at most 64 names, none twice",
		`"session_ttl": null`:                                     "must be a duration from 1m0s to 168h0m0s",
		`"session_ttl": 3600`:                                     "must be a duration from 1m0s to 168h0m0s",
		`"session_ttl": "1 h"`:                                    "must be a duration from 1m0s to 168h0m0s",
		`"session_ttl": "59s"`:                                    "must be a duration from 1m0s to 168h0m0s",
		`"session_ttl": "168h1ns"`:                                "must be a duration from 1m0s to 168h0m0s",
		`"sessions_per_minute": null`:                             "must be a number from 1 to 1000000",
		`"sessions_per_minute": "600"`:                            "must be a number from 1 to 1000000",
		`"sessions_per_minute": 0`:                                "must be a number from 1 to 1000000",
		`"sessions_per_minute": -1`:                               "must be a number from 1 to 1000000",
		`"sessions_per_minute": 1.5`:                              "must be a number from 1 to 1000000",
		`"sessions_per_minute": 1e3`:                              "must be a number from 1 to 1000000",
		`"sessions_per_minute": 1000001`:                          "must be a number from 1 to 1000000",
		`"sessions_per_minute": 99999999999999999999`:             "must be a number from 1 to 1000000",
		`"session_ttl": "1h", "permissions": ["a"], "x": {"": 1}`: "is no member",
	} {
		before, _, _ := strings.Cut(members, ": ")
		if strings.Contains(members, `"x"`) {
			before = `"x"`
		}
		wantError(t, `{"clients": {"b": {}, "acme": {`+members+`}}}`, acme+before+": "+want)
	}
	// The least lifetime is what the service says.
	file := filepath.Join(t.TempDir(), "clients.json")
	write(t, file, `{"clients": {"acme": {"session_ttl": "1m59s"}}}`)
	_, err := clients.Open(file, 2*time.Minute, 168*time.Hour)
	if want := acme + `"session_ttl": must be a duration from 2m0s to 168h0m0s`; err == nil || err.Error() != want {
		t.Errorf("Open with a least lifetime of 2 min = %v, want %q", err, want)
	}
}

func wantError(t *testing.T, text, want string) {
	t.Helper()
	if _, err := open(t, text); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Open of %.200s = %v, want an error with %q", text, err, want)
	}
}

// names are n strings as JSON.
func names(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%q", fmt.Sprint("name-", i))
	}
	return strings.Join(all, ", ")
}

// What is at the bounds is good.
func TestGoodFiles(t *testing.T) {
	padded := `{"clients": {}}`
	padded += strings.Repeat(" ", 1<<20-len(padded))
	for name, text := range map[string]string{
		"1 MiB":              padded,
		"longest name":       `{"clients": {"` + strings.Repeat("x", 128) + `": {}}}`,
		"most permissions":   `{"clients": {"acme": {"permissions": [` + names(64) + `]}}}`,
		"longest permission": `{"clients": {"acme": {"permissions": ["` + strings.Repeat("~", 64) + `"]}}}`,
		"bounds": `{"clients": {"acme": {"session_ttl": "1m", "sessions_per_minute": 1},
			"other": {"session_ttl": "168h", "sessions_per_minute": 1000000}}}`,
	} {
		if _, err := open(t, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnreadableFiles(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.json")
	write(t, large, `{"clients": {}}`+strings.Repeat(" ", 1<<20-14))
	for path, want := range map[string]string{
		dir:                        "not a regular file",
		large:                      "more than 1048576 bytes",
		filepath.Join(dir, "none"): "no such file",
	} {
		if _, err := clients.Open(path, time.Minute, time.Hour); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s) = %v, want an error with %q", path, err, want)
		}
	}
}

// watched is a file that is being read again and again, with its log.
type watched struct {
	*clients.File
	path string
	log  testkit.Log
}

func watch(t *testing.T, text string) *watched {
	t.Helper()
	w := &watched{path: filepath.Join(t.TempDir(), "clients.json")}
	write(t, w.path, text)
	var err error
	w.File, err = clients.Open(w.path, time.Minute, 168*time.Hour)
	testkit.Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx, slog.New(slog.NewJSONHandler(&w.log, nil))) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return w
}

// within waits the 2 s that a change may take.
func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	testkit.WaitFor(t, 2*time.Second, what, f)
}

func (w *watched) isFresh() bool { _, fresh := w.Read(); return fresh }

func TestChanges(t *testing.T) {
	t.Parallel()
	const good = `{"clients": {"acme": {"session_ttl": "1h"}}}`
	w := watch(t, good)
	if last, fresh := w.Read(); !fresh || time.Since(time.Unix(last, 0)) > time.Minute {
		t.Errorf("Read() after Open = %d, %t", last, fresh)
	}
	for i, bad := range []struct {
		what string
		make func()
		want string // in the log
	}{
		{"empty", func() { write(t, w.path, "") }, "must be one JSON object"},
		{"truncated", func() { write(t, w.path, good[:len(good)-1]) }, "must be valid JSON"},
		{"gone", func() { testkit.Must(t, os.Remove(w.path)) }, "no such file"},
		{"a directory", func() { testkit.Must(t, os.Mkdir(w.path, 0o700)) }, "not a regular file"},
		{"too large", func() {
			testkit.Must(t, os.Remove(w.path))
			write(t, w.path, good+strings.Repeat(" ", 1<<20))
		}, "more than 1048576 bytes"},
		{"a link to itself", func() {
			testkit.Must(t, os.Remove(w.path))
			testkit.Must(t, os.Symlink(w.path, w.path))
		}, "too many"},
		{"a bad rule", func() { replace(t, w.path, `{"clients": {"acme": {"permissions": "x"}}}`) },
			`\"acme\": \"permissions\": must be an array of strings`},
	} {
		bad.make()
		within(t, bad.what+" file to be noticed", func() bool { return w.log.Has(bad.want) })
		if c := w.Find("acme"); c == nil || c.SessionTTL != time.Hour || w.isFresh() {
			t.Errorf("%s: Find = %+v, fresh %t, want the last good one, not fresh", bad.what, c, w.isFresh())
		}
		if n := strings.Count(w.log.String(), "\n"); n != i+1 {
			t.Errorf("%s: %d log lines, want %d: %s", bad.what, n, i+1, w.log.String())
		}
	}
	replace(t, w.path, good)
	within(t, "good file", w.isFresh)
	if w.log.Has("loaded") {
		t.Errorf("log %q: a file that has not changed was loaded", w.log.String())
	}
	replace(t, w.path, `{"clients": {"other": {}}}`)
	within(t, "client to go", func() bool { return w.Find("acme") == nil })
	within(t, "line in the log", func() bool { return w.log.Has(`"msg":"clients file loaded","clients":1`) })
	write(t, w.path, `{"clients": {"acme": {"session_ttl": "2h"}}}`) // in place
	within(t, "client to come back", func() bool {
		c := w.Find("acme")
		return c != nil && c.SessionTTL == 2*time.Hour
	})
	if runsAsRoot := os.Getuid() == 0; !runsAsRoot {
		testkit.Must(t, os.Chmod(w.path, 0))
		within(t, "unreadable file to be noticed", func() bool { return !w.isFresh() })
	}
}

// A bad file is logged once, however often it is read.
func TestBadFileLoggedOnce(t *testing.T) {
	t.Parallel()
	w := watch(t, `{"clients": {}}`)
	write(t, w.path, "{")
	within(t, "bad file to be noticed", func() bool { return !w.isFresh() })
	time.Sleep(2500 * time.Millisecond) // read again twice
	if n := strings.Count(w.log.String(), "\n"); n != 1 {
		t.Errorf("log %q has %d lines, want 1", w.log.String(), n)
	}
}

// What a client has used of its rate survives a change of all but its rate.
func TestRateSurvives(t *testing.T) {
	t.Parallel()
	file := func(acme, star string) string {
		return `{"clients": {"acme": {"sessions_per_minute": ` + acme + `}, "*": {"sessions_per_minute": ` + star + `}}}`
	}
	w := watch(t, file("6", "6"))
	now := time.Now()
	take := func(name string) bool { return w.Find(name).Take(name, now) == 0 }
	for _, name := range []string{"acme", "other"} {
		if first, second := take(name), take(name); !first || second {
			t.Fatalf("%s took its first session: %t, its second: %t, want one at once", name, first, second)
		}
	}
	replace(t, w.path, file("6", `6, "permissions": ["a"]`))
	within(t, "change", func() bool { return w.Find("other").Permissions != nil })
	if take("acme") || take("other") {
		t.Error("a change of another member made room")
	}
	replace(t, w.path, file("12", `6`))
	within(t, "change", func() bool { return w.Find("other").Permissions == nil })
	if one, two, three := take("acme"), take("acme"), take("acme"); !one || !two || three || take("other") {
		t.Error("after a change of acme's rate to 12, want two sessions of acme's and none of others")
	}
}

func TestTake(t *testing.T) {
	start := time.Now()
	for _, tt := range []struct {
		perMinute, atOnce int
		next              time.Duration
	}{
		{1, 1, time.Minute}, {5, 1, 12 * time.Second}, {6, 1, 10 * time.Second}, {11, 1, 5454545455},
		{12, 2, 5 * time.Second}, {600, 100, 100 * time.Millisecond}, {1_000_000, 166_666, 60 * time.Microsecond},
	} {
		c := find(t, fmt.Sprintf(`{"sessions_per_minute": %d}`, tt.perMinute))
		taken := 0
		for c.Take("acme", start) == 0 {
			taken++
		}
		if taken != tt.atOnce {
			t.Errorf("%d a minute: %d at once, want %d", tt.perMinute, taken, tt.atOnce)
		}
		wait := c.Take("acme", start)
		if wait < tt.next-time.Nanosecond || wait > tt.next+time.Microsecond {
			t.Errorf("%d a minute: to wait for %s, want %s", tt.perMinute, wait, tt.next)
		}
		if again := c.Take("acme", start); again != wait {
			t.Errorf("%d a minute: to wait for %s after a refusal, want %s", tt.perMinute, again, wait)
		}
		if half := c.Take("acme", start.Add(wait/2)); half < wait/2-1 || half > wait/2+time.Microsecond {
			t.Errorf("%d a minute: to wait for %s after half of %s", tt.perMinute, half, wait)
		}
		if left := c.Take("acme", start.Add(wait)); left != 0 {
			t.Errorf("%d a minute: to wait for %s after the time to wait", tt.perMinute, left)
		}
		if c.Take("acme", start.Add(wait)) == 0 {
			t.Errorf("%d a minute: two sessions after the time to wait for one", tt.perMinute)
		}
	}
	if c := find(t, `{}`); c.Take("acme", start) != 0 {
		t.Error("no rate is a limit")
	}
}

// Each client that is not listed has the whole rate of "*" to itself, in bounded memory.
func TestTakeUnlisted(t *testing.T) {
	f, err := open(t, `{"clients": {"acme": {}, "*": {"sessions_per_minute": 1}}}`)
	testkit.Must(t, err)
	now := time.Now()
	for i := range 20_000 {
		if name := fmt.Sprint("client-", i); f.Find(name).Take(name, now) != 0 {
			t.Fatalf("client %d has no session", i)
		} else if f.Find(name).Take(name, now) == 0 {
			t.Fatalf("client %d has two sessions", i)
		}
	}
	if first, second := f.Find("acme").Take("acme", now), f.Find("acme").Take("acme", now); first+second != 0 {
		t.Error("the rate of * limits a client that is listed")
	}
}

// Callers that come together get no more than the rate allows, and a refusal takes nothing.
func TestTakeTogether(t *testing.T) {
	c, now := find(t, `{"sessions_per_minute": 600}`), time.Now()
	var taken atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 200 {
				if c.Take("acme", now) == 0 {
					taken.Add(1)
				}
			}
		})
	}
	callers.Wait()
	if taken.Load() != 100 {
		t.Errorf("%d sessions at once, want 100", taken.Load())
	}
	if wait := c.Take("acme", now); wait > 101*time.Millisecond {
		t.Errorf("to wait for %s after refusals, want 100ms", wait)
	}
}

// A client is judged by one whole file while files change, and no reader waits or fails.
func TestReadersWhileChanging(t *testing.T) {
	t.Parallel()
	// Both members change together.
	file := func(n int) string {
		rules := fmt.Sprintf(`{"session_ttl": "%dm", "permissions": ["p%d"]}`, n, n)
		all := map[string]json.RawMessage{"acme": json.RawMessage(rules)}
		for i := range 200 {
			all[fmt.Sprint("client-", i)] = json.RawMessage(rules)
		}
		data, err := json.Marshal(map[string]any{"clients": all})
		testkit.Must(t, err)
		return string(data)
	}
	w := watch(t, file(1))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				c := w.Find("acme")
				if c == nil || !c.AllowsPermissions([]string{fmt.Sprint("p", int(c.SessionTTL.Minutes()))}) {
					t.Errorf("Find = %+v, want rules of one file", c)
				}
			}
		})
	}
	for n := 2; n < 5; n++ {
		text := file(n)
		write(t, w.path, text[:len(text)/2]) // as a slow writer leaves it
		time.Sleep(300 * time.Millisecond)
		write(t, w.path, text)
		within(t, "change", func() bool { return w.Find("acme").SessionTTL == time.Duration(n)*time.Minute })
	}
	close(stop)
	readers.Wait()
}
