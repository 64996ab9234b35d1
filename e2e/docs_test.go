//go:build e2e && linux

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

var exampleLines = regexp.MustCompile(
	"```sh\n(cd docs/examples)\n(?:(?:npm|pip) .*\n)?((?:.+ \"\\$sess_id\".*\n){3})```")

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

// ran names, by a text in it, each block of shell commands that a test of this file runs.
var ran = map[string][]string{
	"README.md": {"go run . -dev", "./authsession keygen", "curl -X POST http://localhost:8080", "redis-cli GETDEL"},
	"docs/operate.md": {"keygen -out new.pem", "redis-cli DEL", "redis-cli EVAL", "redis-cli UNLINK",
		"SENTINEL FAILOVER"},
}

var shellBlock = regexp.MustCompile("(?ms)^([^\n]*)\n *```(?:sh|bash|shell|console)\n(.*?)^ *```$")

// Each block of shell commands is run, or the line above says why not.
func TestShellBlocks(t *testing.T) {
	for file, texts := range ran {
		for _, block := range shellBlock.FindAllStringSubmatch(string(read(t, "../"+file)), -1) {
			isRun := slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(block[2], text) })
			if isRun == strings.HasPrefix(block[1], "<!-- not run: ") {
				t.Errorf("%s: run these commands in a test, or write <!-- not run: reason --> above them:\n%s", file, block[2])
			}
		}
	}
}

// commands returns the block of shell commands in a file that contains text.
func commands(t *testing.T, file, text string) string {
	t.Helper()
	for _, block := range shellBlock.FindAllStringSubmatch(string(read(t, "../"+file)), -1) {
		if slices.Contains(ran[file], text) && strings.Contains(block[2], text) {
			return block[2]
		}
	}
	t.Fatalf("%s has no commands with %s, or ran does not name them", file, text)
	return ""
}

// The commands of README.md work when they are pasted one block after the other, and a second time, with another Redis
// and another port.
func TestReadmeCommands(t *testing.T) {
	dev := strings.TrimPrefix(commands(t, "README.md", "go run . -dev"), "go run . ")
	start(t, map[string]string{"ADDR": "127.0.0.1:0"}, strings.Fields(dev)...).waitReady(t)
	dir, addr, redisAddr := t.TempDir(), "127.0.0.1:"+redistest.FreePort(), redistest.Addr(t)
	host, port, _ := net.SplitHostPort(redisAddr)
	here := strings.NewReplacer("redis://localhost:6379", "redis://"+redisAddr, "http://localhost:8080", "http://"+addr,
		"redis-cli ", "redis-cli -h "+host+" -p "+port+" ")
	script := "trap 'kill $!; wait' EXIT\nln -sf " + binary + " .\n" + commands(t, "README.md", "./authsession keygen") +
		commands(t, "README.md", "curl -X POST http://localhost:8080")
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
		script := here.Replace(commands(t, "README.md", "redis-cli GETDEL"))
		record, err := shell(dir, []string{"sess_id=" + session.SessionID}, script)
		first, second, _ := strings.Cut(record, "\n")
		if err != nil || !strings.Contains(first, `"id":"`+session.ID+`"`) || second != first {
			t.Errorf("GET and GETDEL of the record = %q, %v, want it twice", record, err)
		}
	}
}

// The rotation of keys in docs/operate.md refuses no token before its last step.
func TestRotation(t *testing.T) {
	dir, doc := t.TempDir(), commands(t, "docs/operate.md", "keygen -out new.pem")
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

// The commands of docs/operate.md end the sessions that they name and no others, on a single Redis and on a cluster.
func TestEndSessions(t *testing.T) {
	need(t, "redis-cli -v")
	for name, nodes := range map[string][]*redistest.Server{
		"standalone": {redistest.Start(t)}, "cluster": redistest.Cluster(t),
	} {
		t.Run(name, func(t *testing.T) {
			s := startReady(t, nodes[0].Addr, map[string]string{"REDIS_MODE": name})
			run := func(script string, env ...string) {
				t.Helper()
				if name == "cluster" {
					script = strings.ReplaceAll(script, "-n 500", "-n 1")
				}
				for _, node := range nodes {
					here := strings.NewReplacer("redis-cli", "redis-cli -p "+node.Port, "auth_session:", s.prefix)
					_, err := shell(".", env, here.Replace(script))
					testkit.Must(t, err)
				}
			}
			sessions := make([]testkit.SessionAnswer, 6)
			for i := range sessions {
				s.token = goodToken(t, []string{"acme", "other"}[i/3])
				sessions[i] = s.session(t, goodBody)
			}
			wantLeft := func(what string, left ...int) {
				t.Helper()
				for i, session := range sessions {
					found := slices.ContainsFunc(nodes, func(node *redistest.Server) bool {
						value, err := node.Client(t).Get(t.Context(), recordKey(s.prefix, session.SessionID)).Result()
						return err == nil && strings.Contains(value, session.ID)
					})
					if found != slices.Contains(left, i) {
						t.Errorf("%s: session %d is there: %t, want left only %v", what, i, found, left)
					}
				}
			}
			byText := commands(t, "docs/operate.md", "redis-cli EVAL")
			run(commands(t, "docs/operate.md", "redis-cli DEL"), "sess_id="+sessions[0].SessionID)
			wantLeft("by sess_id", 1, 2, 3, 4, 5)
			run(byText)
			wantLeft("of acme", 3, 4, 5)
			run(strings.Replace(byText, `"client_id":"acme"`, `"id":"`+sessions[3].ID+`"`, 1))
			wantLeft("by ID", 4, 5)
			run(commands(t, "docs/operate.md", "redis-cli UNLINK"))
			wantLeft("all")
		})
	}
}

// The planned failover of docs/operate.md loses no session.
func TestPlannedFailover(t *testing.T) {
	need(t, "redis-cli -v")
	(&outage{fault: fault{
		name: "planned failover", during: "200 503 504", ready: "redis: ",
		setUp: sentinel, end: promotion, back: failoverLimit,
		begin: func(t *testing.T, o *outage) {
			here := strings.NewReplacer("-h primary", "-p "+o.primary.Port, "-h sentinel -p 26379", "-p "+o.sentinel.Port)
			_, err := shell(".", nil, here.Replace(commands(t, "docs/operate.md", "SENTINEL FAILOVER")))
			testkit.Must(t, err)
		},
	}}).run(t)
}

// The key set comes from a server with a private CA, through a proxy, by the variables in docs/operate.md.
func TestKeyServer(t *testing.T) {
	ca, caFile := redistest.NewCA(t), filepath.Join(t.TempDir(), "ca.pem")
	testkit.Must(t, os.WriteFile(caFile, ca.PEM, 0o600))
	file := ca.Issue(t, "login.example", time.Now().Add(time.Hour))
	pair, err := tls.LoadX509KeyPair(file, file)
	testkit.Must(t, err)
	env := serviceEnv(t, redistest.Addr(t))
	keySet := read(t, strings.TrimPrefix(env["JWKS_URL"], "file://"))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(keySet)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	defer server.Close()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		there, err := net.Dial("tcp", server.Listener.Addr().String())
		if r.Method != http.MethodConnect || r.Host != "login.example:443" || err != nil {
			t.Errorf("the proxy got %s %s, %v", r.Method, r.Host, err)
			return
		}
		defer there.Close()
		here, _, _ := http.NewResponseController(w).Hijack()
		defer here.Close()
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(there, here) }()
		_, _ = io.Copy(here, there)
	}))
	defer proxy.Close()
	env["JWKS_URL"], env["HTTPS_PROXY"] = "https://login.example/jwks", proxy.URL
	find(t, &start(t, env).log, "(unknown authority)")
	env["SSL_CERT_FILE"] = caFile
	s := start(t, env)
	s.waitReady(t)
	s.session(t, goodBody)
}
