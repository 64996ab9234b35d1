package e2e

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

const consentExamples = "../docs/examples/consent."

// TestConsentPage checks that the page shows the files that TestConsentExamples runs.
func TestConsentPage(t *testing.T) {
	page, err := os.ReadFile("../docs/consent-page.md")
	testkit.Must(t, err)
	for extension, language := range map[string]string{"go": "go", "mjs": "js", "py": "python"} {
		file, err := os.ReadFile(consentExamples + extension)
		testkit.Must(t, err)
		if !strings.Contains(string(page), "```"+language+"\n"+string(file)+"```\n") {
			t.Errorf("docs/consent-page.md does not show %s%s as it is", consentExamples, extension)
		}
	}
}

func TestConsentExamples(t *testing.T) {
	built := filepath.Join(t.TempDir(), "consent")
	if output, err := exec.Command("go", "build", "-o", built, consentExamples+"go").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, output)
	}
	for _, test := range []struct {
		language string
		command  []string
		needs    string // that it can be run; "": nothing
	}{
		{"go", []string{built}, ""},
		{"node", []string{"node", consentExamples + "mjs"}, "../docs/examples/node_modules/redis"},
		{"python", []string{"python3", consentExamples + "py"}, ""},
	} {
		t.Run(test.language, func(t *testing.T) {
			_, err := exec.LookPath(test.command[0])
			if test.needs != "" {
				_, missing := os.Stat(test.needs)
				err = errors.Join(err, missing)
			}
			if err != nil && os.Getenv("REQUIRE_EXAMPLES") == "1" {
				t.Fatalf("REQUIRE_EXAMPLES=1: %v", err)
			}
			if err != nil {
				t.Skip(err)
			}
			testConsentExample(t, test.command)
		})
	}
}

func testConsentExample(t *testing.T, command []string) {
	s := startService(t, serviceEnv(t, redistest.Addr(t)))
	s.waitReady(t)
	client := redis.NewClient(&redis.Options{Addr: redistest.Addr(t)})
	defer client.Close()
	run := func(args ...string) (stdout string, err error) {
		c := exec.Command(command[0], append(command[1:len(command):len(command)], args...)...)
		c.Env = append(os.Environ(), "REDIS_URL=redis://"+redistest.Addr(t), "KEY_PREFIX="+s.prefix)
		output, err := c.Output()
		return strings.TrimSuffix(string(output), "\n"), err
	}
	// A parser that puts the URIs together again would change both.
	const redirectURI, cancelURI = "https://acme.com/done?state=a%2fb&x=", "https://ACME.com"
	create := func() testkit.SessionAnswer {
		t.Helper()
		return s.session(t, `{"end_user_id":"eu_1","redirect_uri":"`+redirectURI+`","cancel_uri":"`+cancelURI+`"}`)
	}
	wantOutput := func(want string, args ...string) {
		t.Helper()
		if got, err := run(args...); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", args[0], got, err, want)
		}
	}
	wantFailure := func(says string, args ...string) {
		t.Helper()
		got, err := run(args...)
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || got != "" || !strings.Contains(string(exit.Stderr), says) {
			t.Errorf("%s = %q, %v, want a failure that says %q", args[0], got, err, says)
		}
	}
	const gone = "gone: expired, used or never there"

	session := create()
	record, err := client.Get(t.Context(), recordKey(s.prefix, session.SessionID)).Result()
	if err != nil || !strings.Contains(record, `"id":"`+session.ID+`"`) {
		t.Fatalf("GET of the record = %q, %v, want that of %s", record, err, session.ID)
	}
	for range 2 { // people reload
		wantOutput(record, "show", session.SessionID)
	}
	wantOutput(redirectURI+"&consent_id=con_1", "approve", session.SessionID, "con_1")
	wantFailure(gone, "approve", session.SessionID, "con_1")
	wantFailure(gone, "cancel", session.SessionID)
	wantFailure(gone, "show", session.SessionID)
	keys, err := client.Keys(t.Context(), s.prefix+"*").Result()
	testkit.Must(t, err)
	for _, key := range keys {
		if key != s.prefix+"probe" {
			t.Errorf("key %q is still in Redis", key)
		}
	}

	session = create()
	got, err := run("cancel", session.SessionID)
	query, ok := strings.CutPrefix(got, cancelURI+"?")
	added, parseErr := url.ParseQuery(query)
	if err != nil || !ok || parseErr != nil || len(added) != 5 || added.Get("error") != "access_denied" ||
		added.Get("error_type") != "CONSENT_ENDUSER_DENIED" || added.Get("error_id") != session.ID ||
		added.Get("error_description") == "" || added.Get("error_uri") == "" {
		t.Errorf("cancel = %q, %v", got, err)
	}
	wantFailure(gone, "approve", session.SessionID, "con_1")

	wantFailure(gone, "show", "never-there")

	newer, err := json.Marshal(map[string]any{"v": 2, "id": session.ID})
	testkit.Must(t, err)
	testkit.Must(t, client.Set(t.Context(), recordKey(s.prefix, "newer"), newer, time.Minute).Err())
	wantFailure("record of version 1", "show", "newer")
}
