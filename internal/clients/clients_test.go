package clients_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"authsession/internal/clients"
	"authsession/internal/testkit"
)

// open opens a file with this text.
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

func TestFileFind(t *testing.T) {
	both, err := open(t, `{"clients": {"acme": {"session_ttl": "1m"}, "*": {"session_ttl": "168h"}}}`)
	testkit.Must(t, err)
	listed, err := open(t, `{"clients": {"acme": {"session_ttl": "1h30m"}, "é": {}}}`)
	testkit.Must(t, err)
	empty, err := open(t, ` {"clients": {}} `)
	testkit.Must(t, err)
	const none = -1
	for _, tt := range []struct {
		name   string
		file   *clients.File
		client string
		want   time.Duration // session_ttl
	}{
		{name: "listed", file: both, client: "acme", want: time.Minute},
		{name: "not listed", file: both, client: "other", want: 168 * time.Hour},
		{name: "other case", file: both, client: "Acme", want: 168 * time.Hour},
		{name: "*", file: both, client: "*", want: 168 * time.Hour},
		{name: "listed, no *", file: listed, client: "acme", want: 90 * time.Minute},
		{name: "listed without rules, no *", file: listed, client: "é", want: 0},
		{name: "not listed, no *", file: listed, client: "other", want: none},
		{name: "other case, no *", file: listed, client: "ACME", want: none},
		{name: "*, no *", file: listed, client: "*", want: none},
		{name: "empty file", file: empty, client: "acme", want: none},
		{name: "no file", file: nil, client: "acme", want: 0},
	} {
		got := time.Duration(none)
		if c := tt.file.Find(tt.client); c != nil {
			got = c.SessionTTL
		}
		if got != tt.want {
			t.Errorf("%s: Find(%q) has session_ttl %s, want %s", tt.name, tt.client, got, tt.want)
		}
	}
}

// Errors name the client, the member and the rule.
func TestOpenFails(t *testing.T) {
	long := strings.Repeat("x", 129)
	for _, tt := range []struct{ text, want string }{
		{text: ``, want: `"", byte 0: must be valid JSON`},
		{text: `[]`, want: `must be a JSON object`},
		{text: `null`, want: `must be a JSON object`},
		{text: `{}`, want: `"/clients": must be a JSON object`},
		{text: "\ufeff" + `{"clients": {}}`, want: "must be valid JSON"},
		{text: `{"clients": {}} {}`, want: "byte 16: must be valid JSON"},
		{text: `{"clients": {"acme": {`, want: `"/clients/acme", byte 22: must be valid JSON`},
		{text: `{"clients": null}`, want: `"/clients": must be a JSON object`},
		{text: `{"clients": []}`, want: `"/clients": must be a JSON object`},
		{text: `{"Clients": {}}`, want: `"/Clients": unknown object member name`},
		{text: `{"clients": {}, "x": 1}`, want: `"/x": unknown object member name`},
		{text: "{\"clients\": {\"\xff\": {}}}", want: "invalid UTF-8"},
		{text: `{"clients": {"\ud800": {}}}`, want: "invalid surrogate pair"},
		{text: `{"clients": {}, "clients": {}}`, want: "byte 16: must be valid JSON: duplicate object member name"},
		{text: `{"clients": {"acme": {}, "\u0061cme": {}}}`, want: `"/clients/acme", byte 25: must be valid JSON: duplicate`},
		{text: `{"clients": {"": {}}}`, want: `"/clients/": must have a name of 1 to 128 bytes`},
		{text: `{"clients": {"` + long + `": {}}}`, want: `xxx": must have a name of 1 to 128 bytes`},
		{text: `{"clients": {"acme": null}}`, want: `"/clients/acme": must be a JSON object`},
		{text: `{"clients": {"\u202e": []}}`, want: `"/clients/\u202e": must be a JSON object`},
		{text: `{"clients": {"a": {}, "acme": {"ttl": "1h"}}}`, want: `"/clients/acme/ttl": unknown object member name`},
		{text: `{"clients": {"acme": {"Permissions": []}}}`, want: `"/clients/acme/Permissions": unknown`},
		{text: `{"clients": {"acme": {"x": [], "x": []}}}`, want: `"/clients/acme/x"`},
		{text: `{"clients": {"*": {"redirect_uris": ["x"]}}}`, want: `"/clients/*/redirect_uris": entry 1 must be`},
	} {
		wantError(t, tt.text, tt.want)
	}

	const (
		badArray  = "must be an array of strings"
		badID     = "must be 1 to 64 bytes of printable ASCII without space"
		badTTL    = "must be a duration from 1m0s to 168h0m0s"
		badNumber = "must be a number from 1 to 1000000"
		tooMany   = "must be at most 64 names, none twice"
		wildcard  = "must be a URI without *"
	)
	for _, tt := range []struct{ member, value, want string }{
		{member: "redirect_uris", value: `null`, want: badArray},
		{member: "redirect_uris", value: `"https://acme.com/cb"`, want: badArray},
		{member: "redirect_uris", value: `["https://acme.com/cb", null]`, want: badArray},
		{member: "redirect_uris", value: `["https://acme.com/cb", ""]`, want: "entry 2 " + wildcard},
		{member: "redirect_uris", value: `["https://*.acme.com/cb"]`, want: "entry 1 " + wildcard},
		{member: "redirect_uris", value: `["https://acme.com/a?x=*"]`, want: "entry 1 " + wildcard},
		{member: "redirect_uris", value: `["https://acme.com/cb#"]`, want: "entry 1 must not have a fragment"},
		{member: "redirect_uris", value: `["http://acme.com/cb"]`, want: "entry 1 must be https unless"},
		{member: "institution_ids", value: `null`, want: badArray},
		{member: "institution_ids", value: `[10]`, want: badArray},
		{member: "institution_ids", value: `["10", ""]`, want: "entry 2 " + badID},
		{member: "institution_ids", value: `["é"]`, want: "entry 1 " + badID},
		{member: "institution_ids", value: `["` + long[:65] + `"]`, want: "entry 1 " + badID},
		{member: "permissions", value: `null`, want: badArray},
		{member: "permissions", value: `["a", "b", "a"]`, want: tooMany},
		{member: "permissions", value: names(65), want: tooMany},
		{member: "session_ttl", value: `null`, want: badTTL},
		{member: "session_ttl", value: `"1 h"`, want: badTTL},
		{member: "session_ttl", value: `"59s"`, want: badTTL},
		{member: "session_ttl", value: `"168h1ns"`, want: badTTL},
		{member: "sessions_per_minute", value: `null`, want: badNumber},
		{member: "sessions_per_minute", value: `"600"`, want: badNumber},
		{member: "sessions_per_minute", value: `0`, want: badNumber},
		{member: "sessions_per_minute", value: `1.5`, want: badNumber},
		{member: "sessions_per_minute", value: `1e3`, want: badNumber},
		{member: "sessions_per_minute", value: `1000001`, want: badNumber},
		{member: "sessions_per_minute", value: `99999999999999999999`, want: badNumber},
	} {
		wantError(t, fmt.Sprintf(`{"clients": {"b": {}, "acme": {%q: %s}}}`, tt.member, tt.value),
			fmt.Sprintf(`"/clients/acme/%s": %s`, tt.member, tt.want))
	}

	dir := t.TempDir()
	large := filepath.Join(dir, "large.json")
	write(t, large, `{"clients": {}}`+strings.Repeat(" ", 1<<20))
	for _, tt := range []struct{ path, want string }{
		{path: dir, want: "is a directory"},
		{path: large, want: "more than 1048576 bytes"},
		{path: filepath.Join(dir, "none"), want: "no such file"},
	} {
		if _, err := clients.Open(tt.path, time.Minute, time.Hour); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open(%s) = %v, want an error with %q", tt.path, err, tt.want)
		}
	}
}

// One error has a line for each fault.
func TestOpenFailsAllFaults(t *testing.T) {
	const text = `{"x": 1, "clients": {"b": [], "": {}, "a": {"ttl": 1, "session_ttl": "x", "sessions_per_minute": 0,
		"redirect_uris": ["https://a.example/", "*", "x"], "permissions": ["p", "p", ""]}}}`
	want := []string{`"/x": unknown object member name`, `"/clients/": must have a name of 1 to 128 bytes`,
		`"/clients/a/permissions": entry 3 must be 1 to 64 bytes of printable ASCII without space`,
		`"/clients/a/permissions": must be at most 64 names, none twice`,
		`"/clients/a/redirect_uris": entry 2 must be a URI without *`,
		`"/clients/a/redirect_uris": entry 3 must be an absolute URI`,
		`"/clients/a/session_ttl": must be a duration from 1m0s to 168h0m0s`,
		`"/clients/a/sessions_per_minute": must be a number from 1 to 1000000`,
		`"/clients/a/ttl": unknown object member name`, `"/clients/b": must be a JSON object`}
	if _, err := open(t, text); fmt.Sprint(err) != strings.Join(want, "\n") {
		t.Errorf("Open = %v, want\n%s", err, strings.Join(want, "\n"))
	}
}

func wantError(t *testing.T, text, want string) {
	t.Helper()
	if _, err := open(t, text); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 500 {
		t.Errorf("Open of %.200s = %v, want a short error with %q", text, err, want)
	}
}

// names returns a JSON array of n strings.
func names(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(`"name-%d"`, i)
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// Values at the limits are valid.
func TestOpen(t *testing.T) {
	const empty = `{"clients": {}}`
	for _, tt := range []struct{ name, text string }{
		{name: "1 MiB", text: empty + strings.Repeat(" ", 1<<20-len(empty))},
		{name: "longest name", text: `{"clients": {"` + strings.Repeat("x", 128) + `": {}}}`},
		{name: "most permissions", text: `{"clients": {"acme": {"permissions": ` + names(64) + `}}}`},
		{name: "longest permission", text: `{"clients": {"acme": {"permissions": ["` + strings.Repeat("~", 64) + `"]}}}`},
		{name: "minimum", text: `{"clients": {"acme": {"session_ttl": "1m", "sessions_per_minute": 1}}}`},
		{name: "maximum", text: `{"clients": {"acme": {"session_ttl": "168h", "sessions_per_minute": 1000000}}}`},
	} {
		if _, err := open(t, tt.text); err != nil {
			t.Errorf("%s: Open = %v, want nil", tt.name, err)
		}
	}
}

// runFile runs a file with this text until the test, which must be in a synctest bubble, ends.
func runFile(t *testing.T, text string) (f *clients.File, path string, log *testkit.Log) {
	t.Helper()
	path, log = filepath.Join(t.TempDir(), "clients.json"), &testkit.Log{}
	write(t, path, text)
	f, err := clients.Open(path, time.Minute, 168*time.Hour)
	testkit.Must(t, err)
	go f.Run(t.Context(), slog.New(slog.NewJSONHandler(log, nil)))
	time.Sleep(500 * time.Millisecond) // so that the file changes between two reads
	return f, path, log
}

const maxDelay = 2 * time.Second // until a change of the file is in force

// Run keeps the last valid version and logs each error once.
func TestFileRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const good = `{"clients": {"acme": {"session_ttl": "1h"}}}`
		f, path, log := runFile(t, good)
		const loaded = `"msg":"clients file loaded","clients":1`
		if !log.Has(loaded) {
			t.Errorf("at start the log is %s, want %s", log, loaded)
		}
		remove := func() { testkit.Must(t, os.RemoveAll(path)) }
		for i, tt := range []struct {
			name   string
			change func()
			want   string // in the log
		}{
			{name: "empty", change: func() { write(t, path, "") }, want: "must be valid JSON"},
			{name: "cut", change: func() { write(t, path, good[:len(good)-1]) }, want: "byte 43: must be valid JSON"},
			{name: "gone", change: remove, want: "no such file"},
			{name: "directory", change: func() { testkit.Must(t, os.Mkdir(path, 0o700)) }, want: "is a directory"},
			{name: "large", change: func() { remove(); write(t, path, good+strings.Repeat(" ", 1<<20)) }, want: "more than"},
			{name: "link to itself", change: func() { remove(); testkit.Must(t, os.Symlink(path, path)) }, want: "too many"},
			{name: "bad rule", change: func() { remove(); write(t, path, `{"clients": {"acme": {"permissions": "x"}}}`) },
				want: `\"/clients/acme/permissions\": must be an array of strings`},
		} {
			tt.change()
			time.Sleep(3 * maxDelay)
			if lines := strings.Split(log.String(), "\n"); len(lines) != i+3 || !strings.Contains(lines[i+1], tt.want) {
				t.Fatalf("%s: the log is %s, want %d lines, the last with %q", tt.name, log, i+2, tt.want)
			}
			if c := f.Find("acme"); c == nil || c.SessionTTL != time.Hour {
				t.Errorf("%s: Find = %+v, want the last valid rules", tt.name, c)
			}
			if f.Fresh() {
				t.Errorf("%s: Fresh() = true, want false", tt.name)
			}
		}
		write(t, path, good)
		time.Sleep(maxDelay)
		if !f.Fresh() || strings.Count(log.String(), loaded) != 1 {
			t.Errorf("Fresh() = %t for the old text, log %s, want true and no load", f.Fresh(), log)
		}
		write(t, path, `{"clients": {"other": {}}}`)
		time.Sleep(maxDelay)
		if f.Find("acme") != nil || f.Find("other") == nil || strings.Count(log.String(), loaded) != 2 {
			t.Errorf("after a change, acme has %+v, log %s", f.Find("acme"), log)
		}
	})
}

// A client keeps what it has used of its rate when another member changes.
func TestFileRunKeepsQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := func(acme, others string) string {
			return `{"clients": {"acme": {"sessions_per_minute": ` + acme + `}, "*": {"sessions_per_minute": ` + others + `}}}`
		}
		f, path, _ := runFile(t, file("6", "6"))
		now := time.Now()
		count := func(clientID string) (n int) {
			for f.Find(clientID).Allow(clientID, now) == 0 {
				n++
			}
			return n
		}
		for _, tt := range []struct {
			name, text           string
			wantAcme, wantOthers int // sessions at once
		}{
			{name: "start", text: file("6", "6"), wantAcme: 1, wantOthers: 1},
			{name: "other member", text: file("6", `6, "permissions": ["a"]`)},
			{name: "rate of acme", text: file("12", "6"), wantAcme: 2},
		} {
			write(t, path, tt.text)
			time.Sleep(maxDelay)
			if acme, others := count("acme"), count("other"); acme != tt.wantAcme || others != tt.wantOthers {
				t.Errorf("%s: %d and %d sessions, want %d and %d", tt.name, acme, others, tt.wantAcme, tt.wantOthers)
			}
		}
	})
}
