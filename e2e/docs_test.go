package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	page := consentPage(t)
	for extension, language := range map[string]string{"go": "go", "mjs": "js", "py": "python"} {
		file, err := os.ReadFile(consentExamples + extension)
		testkit.Must(t, err)
		if !strings.Contains(page, "```"+language+"\n"+string(file)+"```\n") {
			t.Errorf("docs/consent-page.md does not show %s%s as it is", consentExamples, extension)
		}
	}
}

func consentPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/consent-page.md")
	testkit.Must(t, err)
	return string(page)
}

var exampleLines = regexp.MustCompile(
	"```sh\n(cd docs/examples)\n((?:.*install.*\n)?)((?:.+ \"\\$sess_id\".*\n){3})```")

// TestConsentExamples runs the page's lines as they stand, but for those that install something from elsewhere.
func TestConsentExamples(t *testing.T) {
	blocks := exampleLines.FindAllStringSubmatch(consentPage(t), -1)
	if len(blocks) != 3 {
		t.Fatalf("docs/consent-page.md has the lines of %d examples, want 3", len(blocks))
	}
	for _, block := range blocks {
		cd, install, lines := block[1], block[2], strings.Split(block[3], "\n")
		tool, _, _ := strings.Cut(lines[0], " ")
		t.Run(tool, func(t *testing.T) {
			_, err := exec.LookPath(tool)
			switch {
			case err != nil: // is not there
			case strings.HasPrefix(install, "npm"):
				_, err = os.Stat("../docs/examples/node_modules/redis")
			case strings.HasPrefix(install, "pip"):
				err = exec.Command(tool, "-c", "import cryptography").Run()
			}
			if err != nil && os.Getenv("REQUIRE_EXAMPLES") == "1" {
				t.Fatalf("REQUIRE_EXAMPLES=1: %v", err)
			}
			if err != nil {
				t.Skip(err)
			}
			for _, seal := range []string{"false", "true"} {
				t.Run("SEAL_RECORDS="+seal, func(t *testing.T) { testConsentExample(t, cd, lines, seal) })
			}
		})
	}
}

// The lines of Java and PHP open the vectors too, where the machine has these languages.
func TestConsentPageOpens(t *testing.T) {
	page := consentPage(t)
	for tool, file := range map[string]string{"java": "Open.java", "php": "open.php"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Logf("not run: %v", err)
			continue
		}
		_, text, _ := strings.Cut(page, "```"+tool+"\n")
		text, _, _ = strings.Cut(text, "```\n")
		path := filepath.Join(t.TempDir(), file)
		testkit.Must(t, os.WriteFile(path, []byte(text), 0o600))
		for kind, v := range vectors(t) {
			open := exec.Command(tool, path, v.Secret)
			open.Stdin = bytes.NewReader(v.Value)
			if got, err := open.CombinedOutput(); err != nil || string(got) != v.Record {
				t.Errorf("%s opens the %s vector as %s, %v, want %s", tool, kind, got, err, v.Record)
			}
			open = exec.Command(tool, path, "another")
			open.Stdin = bytes.NewReader(v.Value)
			if got, err := open.Output(); kind == "sealed" && (err == nil || len(got) > 0) {
				t.Errorf("%s opens the sealed vector for another secret: %s", tool, got)
			}
		}
	}
}

type vector struct {
	Secret string `json:"sess_id"`
	Name   string `json:"name"`
	Value  []byte `json:"value_base64"`
	Record string `json:"record"`
}

// vectors has a value of each kind.
func vectors(t *testing.T) (vectors map[string]vector) {
	t.Helper()
	data, err := os.ReadFile("../internal/seal/testdata/records.json")
	testkit.Must(t, err)
	testkit.Must(t, json.Unmarshal(data, &vectors))
	return vectors
}

func testConsentExample(t *testing.T, cd string, lines []string, seal string) {
	env := serviceEnv(t, redistest.Addr(t))
	env["SEAL_RECORDS"] = seal
	s := startService(t, env)
	s.waitReady(t)
	client := redis.NewClient(&redis.Options{Addr: redistest.Addr(t)})
	defer client.Close()
	// run runs the line that has these words, but for what in its end is not in them.
	run := func(action, secret string, consentID ...string) (stdout string, err error) {
		for _, line := range lines {
			line, _, _ = strings.Cut(line, "   #")
			if consentID == nil {
				line = strings.TrimSuffix(line, " con_1")
			}
			if !strings.Contains(line, " "+action+" ") {
				continue
			}
			c := exec.Command("bash", "-c", cd+" && "+line)
			c.Dir = ".."
			c.Env = append(os.Environ(), "REDIS_URL=redis://"+redistest.Addr(t), "KEY_PREFIX="+s.prefix, "sess_id="+secret)
			output, err := c.Output()
			return strings.TrimSuffix(string(output), "\n"), err
		}
		t.Fatalf("no line for %s in %q", action, lines)
		return "", nil
	}
	// A parser that puts the URIs together again would change both.
	const redirectURI, cancelURI = "https://acme.com/done?state=a%2fb&x=", "https://ACME.com"
	create := func() testkit.SessionAnswer {
		t.Helper()
		return s.session(t, `{"end_user_id":"eu_1","redirect_uri":"`+redirectURI+`","cancel_uri":"`+cancelURI+`"}`)
	}
	wantOutput := func(want, action, secret string, consentID ...string) {
		t.Helper()
		if got, err := run(action, secret, consentID...); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", action, got, err, want)
		}
	}
	wantFailure := func(says, action, secret string, consentID ...string) {
		t.Helper()
		got, err := run(action, secret, consentID...)
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || got != "" || !strings.Contains(string(exit.Stderr), says) {
			t.Errorf("%s = %q, %v, want a failure that says %q", action, got, err, says)
		}
	}
	const gone = "gone: expired, used or never there"

	session := create()
	record, err := run("show", session.SessionID)
	if err != nil || !strings.HasPrefix(record, `{"v":1,"id":"`+session.ID+`"`) {
		t.Fatalf("show = %q, %v, want the record of %s", record, err, session.ID)
	}
	value, err := client.Get(t.Context(), recordKey(s.prefix, session.SessionID)).Result()
	if err != nil || (value == record) != (seal == "false") {
		t.Fatalf("GET of the record = %q, %v", value, err)
	}
	wantOutput(record, "show", session.SessionID)        // people reload
	wantFailure("usage: ", "approve", session.SessionID) // names no consent, and uses nothing up
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

	for _, v := range vectors(t) {
		testkit.Must(t, client.Set(t.Context(), s.prefix+v.Name, v.Value, time.Minute).Err())
		wantOutput(v.Record, "show", v.Secret)
	}
}
