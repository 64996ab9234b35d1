//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"net"
	"net/url"
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

var exampleLines = regexp.MustCompile("```sh\n(cd docs/examples)\n(?:(?:npm|pip) .*\n)?((?:.+ \"\\$sess_id\".*\n){3})```")

// docs/consent-page.md shows the examples as they are, and its commands work.
func TestConsentExamples(t *testing.T) {
	page := string(read(t, "../docs/consent-page.md"))
	blocks := exampleLines.FindAllStringSubmatch(page, -1)
	if len(blocks) != 3 {
		t.Fatalf("docs/consent-page.md has the commands of %d examples, want 3", len(blocks))
	}
	for i, language := range []struct{ name, extension, requires string }{
		{name: "go", extension: "go", requires: "go version"},
		{name: "js", extension: "mjs", requires: "node -v && test -d docs/examples/node_modules/redis"},
		{name: "python", extension: "py", requires: "python3 -c 'import cryptography'"},
	} {
		t.Run(language.name, func(t *testing.T) {
			code := read(t, "../docs/examples/consent."+language.extension)
			if !strings.Contains(page, "```"+language.name+"\n"+string(code)+"```\n") {
				t.Errorf("docs/consent-page.md does not show consent.%s as it is", language.extension)
			}
			need(t, language.requires)
			for _, seal := range []string{"false", "true"} {
				testConsentExample(t, blocks[i][1], strings.Split(blocks[i][2], "\n"), seal)
			}
		})
	}
}

func testConsentExample(t *testing.T, cd string, lines []string, seal string) {
	s := startReady(t, redistest.Addr(t), map[string]string{"SEAL_RECORDS": seal})
	client := redis.NewClient(&redis.Options{Addr: redistest.Addr(t)})
	defer client.Close()
	run := func(action, secret string) (stdout string, err error) {
		t.Helper()
		for _, line := range lines {
			if strings.Contains(line, " "+action+" ") {
				return shell("..", []string{
					"REDIS_URL=redis://" + redistest.Addr(t), "KEY_PREFIX=" + s.prefix, "sess_id=" + secret}, cd+"\n"+line)
			}
		}
		t.Fatalf("no command for %s in %q", action, lines)
		return "", nil
	}
	want := func(action, secret, output, failure string) {
		t.Helper()
		got, err := run(action, secret)
		if got != output || (err != nil) != (failure != "") || err != nil && !strings.Contains(err.Error(), failure) {
			t.Errorf("%s with SEAL_RECORDS=%s = %q, %v, want %q %s", action, seal, got, err, output, failure)
		}
	}
	// A parser that puts the URIs together again would change both.
	const redirectURI, cancelURI = "https://acme.com/done?state=a%2fb&x=", "https://ACME.com"
	body := `{"end_user_id":"eu_1","redirect_uri":"` + redirectURI + `","cancel_uri":"` + cancelURI + `"}`

	session := s.session(t, body)
	record, err := run("show", session.SessionID)
	if err != nil || !strings.HasPrefix(record, `{"v":1,"id":"`+session.ID+`"`) {
		t.Fatalf("show with SEAL_RECORDS=%s = %q, %v, want the record of %s", seal, record, err, session.ID)
	}
	key := recordKey(s.prefix, session.SessionID)
	if value := client.Get(t.Context(), key).Val(); (value == record) != (seal == "false") {
		t.Errorf("GET with SEAL_RECORDS=%s = %q", seal, value)
	}
	want("show", session.SessionID, record, "") // people reload
	want("approve", session.SessionID, redirectURI+"&consent_id=con_1", "")
	for _, action := range []string{"approve", "cancel", "show"} {
		want(action, session.SessionID, "", "gone: expired, used or never there")
	}
	if n := client.Exists(t.Context(), key).Val(); n != 0 {
		t.Error("the record is still in Redis")
	}

	session = s.session(t, body)
	got, err := run("cancel", session.SessionID)
	query, ok := strings.CutPrefix(got, cancelURI+"?")
	added, parseErr := url.ParseQuery(query)
	if err != nil || !ok || parseErr != nil || len(added) != 5 || added.Get("error") != "access_denied" ||
		added.Get("error_type") != "CONSENT_ENDUSER_DENIED" || added.Get("error_id") != session.ID ||
		added.Get("error_description") == "" || added.Get("error_uri") == "" {
		t.Errorf("cancel = %q, %v", got, err)
	}

	testkit.Must(t, client.Set(t.Context(), recordKey(s.prefix, "newer"), `{"v":2,"id":"x"}`, time.Minute).Err())
	want("show", "newer", "", "record of version 1")

	var vectors map[string]struct {
		Secret string `json:"sess_id"`
		Name   string `json:"name"`
		Value  []byte `json:"value_base64"`
		Record string `json:"record"`
	}
	testkit.Must(t, json.Unmarshal(read(t, "../internal/seal/testdata/records.json"), &vectors))
	for _, v := range vectors {
		testkit.Must(t, client.Set(t.Context(), s.prefix+v.Name, v.Value, time.Minute).Err())
		want("show", v.Secret, v.Record, "")
	}
}

// readmeCommands returns the block of commands in README.md that contains text.
func readmeCommands(t *testing.T, text string) string {
	t.Helper()
	pattern := "```sh\n([^`]*" + regexp.QuoteMeta(text) + "[^`]*)```"
	block := regexp.MustCompile(pattern).FindSubmatch(read(t, "../README.md"))
	if block == nil {
		t.Fatalf("README.md has no commands with %s", text)
	}
	return string(block[1])
}

// The commands of README.md work when they are pasted one block after the other, and a second time, with another Redis
// and another port.
func TestReadmeCommands(t *testing.T) {
	dir, addr, redisAddr := t.TempDir(), "127.0.0.1:"+redistest.FreePort(), redistest.Addr(t)
	host, port, _ := net.SplitHostPort(redisAddr)
	here := strings.NewReplacer("redis://localhost:6379", "redis://"+redisAddr, "http://localhost:8080", "http://"+addr,
		"redis-cli ", "redis-cli -h "+host+" -p "+port+" ")
	script := "trap 'kill $!; wait' EXIT\nln -sf " + binary + " .\n" + readmeCommands(t, "./authsession keygen") +
		readmeCommands(t, "curl -X POST http://localhost:8080")
	var session testkit.SessionAnswer
	for range 2 {
		output, err := shell(dir, []string{"ADDR=" + addr}, here.Replace(script))
		if err != nil {
			t.Fatal(err)
		}
		answers := regexp.MustCompile(`(?m)\{"auth_url":.*\}`).FindAllString(output, -1)
		if len(answers) != 2 {
			t.Fatalf("output = %q, want two answers", output)
		}
		testkit.Must(t, json.Unmarshal([]byte(answers[1]), &session))
	}
	if _, err := exec.LookPath("redis-cli"); err == nil {
		script := here.Replace(readmeCommands(t, "redis-cli GETDEL"))
		record, err := shell(dir, []string{"sess_id=" + session.SessionID}, script)
		first, second, _ := strings.Cut(record, "\n")
		if err != nil || !strings.Contains(first, `"id":"`+session.ID+`"`) || second != first {
			t.Errorf("GET and GETDEL of the record = %q, %v, want it twice", record, err)
		}
	}
}

// The rotation of keys in docs/operate.md refuses no token before its last step.
func TestRotation(t *testing.T) {
	dir, doc := t.TempDir(), string(read(t, "../docs/operate.md"))
	run := func(script string) string {
		t.Helper()
		output, err := shell(dir, nil, script)
		testkit.Must(t, err)
		return output
	}
	run("ln -s " + binary + " . && ./authsession keygen -out key.pem -jwks jwks.json")
	s := startReady(t, redistest.Addr(t), map[string]string{"JWKS_URL": "file://" + filepath.Join(dir, "jwks.json")})
	tokens := []string{run("./authsession token -key key.pem -client acme")}
	steps := regexp.MustCompile(`(?m)^(\./authsession .+?|mv .+?) +# (\d)\. `).FindAllStringSubmatch(doc, -1)
	if len(steps) != 5 {
		t.Fatalf("docs/operate.md has %d commands, want 5", len(steps))
	}
	for _, step := range steps {
		switch run(step[1]); step[2] {
		case "2":
			find(t, &s.log, `(key set loaded","keys":2)`)
		case "4":
			tokens = append(tokens, run("cat token"))
		case "6":
			testkit.WaitFor(t, 20*time.Second, "the old token to be refused", func() bool {
				s.token = tokens[0]
				return s.post(goodBody).answer.Status == 401
			})
			tokens = tokens[1:]
		}
		for _, s.token = range tokens {
			s.session(t, goodBody)
		}
	}
}
