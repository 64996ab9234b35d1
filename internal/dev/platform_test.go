package dev_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"authsession/internal/dev"
	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

func TestEndUsers(t *testing.T) {
	d := newTestDev(t, nil)
	good := printedToken.FindStringSubmatch(d.out.String())[1]
	const invalid = `Bearer error="invalid_token", error_description="header is not base64url"`
	for _, path := range []string{"/end-users", "/v1/end-users"} {
		for authorization, challenge := range map[string]string{
			good: "", "bearer  " + good[7:]: "", "": "Bearer", "Bearer": "Bearer", "Basic dTpw": "Bearer",
			"Bearer x.y.z": invalid,
		} {
			for method, want := range map[string]string{
				"POST": `^\{"end_user_id":"eu_2[A-Z2-7]{26}","id":"eu_2[A-Z2-7]{26}"\}\n$`,
				"GET":  `^\{"end_users":\[\]\}\n$`,
				"HEAD": "^$",
			} {
				a := d.do(t, method, path+"?email=a%40b.c", `{"name":"A"}`, map[string]string{"Authorization": authorization})
				challenge := challenge
				if method != "POST" { // needs no token
					challenge = ""
				}
				if got := a.Header.Get("WWW-Authenticate"); got != challenge {
					t.Errorf("%s %s with %q has WWW-Authenticate %q, want %q", method, path, authorization, got, challenge)
				}
				if challenge != "" {
					a.WantError(t, 401, "unauthorized")
					continue
				}
				a.WantHeaders(t, "application/json")
				ids := regexp.MustCompile(`eu_\w+`).FindAllString(string(a.Body), -1)
				if a.Status != 200 || !regexp.MustCompile(want).Match(a.Body) || ids != nil && ids[0] != ids[1] {
					t.Errorf("%s %s = %d %s, want 200 and %s", method, path, a.Status, a.Body, want)
				}
			}
		}
	}
	if d.log.Has(good[7:]) {
		t.Error("the log holds a token")
	}
}

// The service answers all other requests itself, and none of the stand-ins'. GET / leads to the sandbox.
func TestWrap(t *testing.T) {
	d := newTestDev(t, nil)
	for _, path := range []string{"/token/", "/v1/v1/token", "/v2/token", "/%74oken", "/institutions", "/auth/session"} {
		if a := d.do(t, "POST", path, "{}", nil); !strings.Contains(string(a.Body), "the service was asked") {
			t.Errorf("POST %s = %d %s, want the service's 400", path, a.Status, a.Body)
		}
	}
	for path, want := range map[string]string{"/token": "POST", "/end-users": "GET, HEAD, POST", "/": "GET, HEAD"} {
		for _, prefix := range []string{"", "/v1"} {
			a := d.do(t, "PUT", prefix+path, "", nil)
			a.WantError(t, 405, "method_not_allowed")
			if allow := a.Header.Get("Allow"); allow != want {
				t.Errorf("PUT %s%s has Allow %q, want %s", prefix, path, allow, want)
			}
		}
	}
	for _, id := range []string{"mine.1", "no id"} {
		a := d.do(t, "GET", "/end-users", "", map[string]string{"X-Request-Id": id})
		if got := a.Header.Get("X-Request-Id"); (got == id) != (id == "mine.1") || got == "" {
			t.Errorf("the X-Request-Id of an answer to %q is %q", id, got)
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		if a := d.do(t, method, "/", "", nil); a.Status != 303 || a.Header.Get("Location") != d.page+"/" {
			t.Errorf("%s / = %d to %q, want 303 to %s/", method, a.Status, a.Header.Get("Location"), d.page)
		}
	}
	d = newTestDev(t, map[string]string{"AUTH_URL": "https://c.example/"})
	if a := d.do(t, "GET", "/", "", nil); !strings.Contains(string(a.Body), "the service was asked") {
		t.Errorf("GET / with AUTH_URL = %d %s, want the service's 400", a.Status, a.Body)
	}
}

// takes reports whether d takes the token that issuer has printed.
func (d *testDev) takes(t *testing.T, issuer *testDev) bool {
	t.Helper()
	header := map[string]string{"Authorization": printedToken.FindStringSubmatch(issuer.out.String())[1]}
	return d.do(t, "POST", "/end-users", "", header).Status == 200
}

// Runs share a key for each algorithm, so that tokens outlive a restart.
func TestKey(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	first := newTestDev(t, nil)
	if rsa := newTestDev(t, map[string]string{"JWT_ALGORITHMS": "RS256"}); !rsa.takes(t, rsa) || rsa.takes(t, first) {
		t.Error("with another algorithm, -dev does not take only its own tokens")
	}
	if !newTestDev(t, nil).takes(t, first) {
		t.Error("a later run does not take the first one's token")
	}
	file := regexp.MustCompile(`\nKey: (.+), kept for later runs\n`).FindStringSubmatch(first.out.String())[1]
	names, err := filepath.Glob(filepath.Dir(file) + "/*")
	if err != nil || len(names) != 2 || names[0] != file {
		t.Errorf("the keys' folder has %q, %v, want %s and one for RS256", names, err, file)
	}
	for path, want := range map[string]os.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		info, err := os.Stat(path)
		testkit.Must(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("the mode of %s is %o, want %o", path, got, want)
		}
	}
}

// A run that cannot keep its key has one of its own, says why, and leaves the file as it is.
func TestKeyNotKept(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	folder, err := os.UserCacheDir()
	testkit.Must(t, err)
	file := filepath.Join(folder, "authsession", "dev-EdDSA.pem")
	testkit.Must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	testkit.Must(t, os.WriteFile(file, []byte("mine"), 0o600))
	for home, reason := range map[string]string{
		os.Getenv("HOME"): file + " has no key in PEM",
		os.Args[0]:        "not a directory",
		"":                "defined",
	} {
		t.Setenv("HOME", home)
		d := newTestDev(t, nil)
		want := regexp.MustCompile(`\nKey: of this run alone: .*` + reason + `\n`)
		if out := d.out.String(); !want.MatchString(out) {
			t.Errorf("with HOME=%s, -dev prints %s, want %s", home, out, want)
		}
		if !d.takes(t, d) {
			t.Errorf("with HOME=%s, -dev does not take its own token", home)
		}
	}
	if text, err := os.ReadFile(file); string(text) != "mine" {
		t.Errorf("the file holds %q, %v, want it as it was", text, err)
	}
}

// Of runs that start at the same time, at least one keeps its key, and the others have keys of their own.
func TestKeyAtOnce(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	devs, errs, out := [8]*dev.Dev{}, [8]error{}, [8]testkit.Log{}
	env := map[string]string{"REDIS_URL": "redis://" + redistest.Addr(t), "ADDR": "127.0.0.1:0"}
	var starting sync.WaitGroup
	for i := range devs {
		starting.Go(func() {
			devs[i], errs[i] = dev.Start(func(name string) string { return env[name] }, &out[i], io.Discard)
		})
	}
	starting.Wait()
	kept := false
	for i, d := range devs {
		defer d.Stop()
		testkit.Must(t, errs[i])
		_, err := d.Wrap(&net.TCPAddr{}, nil)
		testkit.Must(t, err)
		kept = kept || out[i].Has(", kept for later runs\n")
	}
	if !kept {
		t.Errorf("no run keeps its key; the first one prints %s", &out[0])
	}
}
