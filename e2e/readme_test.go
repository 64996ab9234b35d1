package e2e

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// readmeCommands is the block of commands in README.md that has text.
func readmeCommands(t *testing.T, text string) string {
	t.Helper()
	page, err := os.ReadFile("../README.md")
	testkit.Must(t, err)
	for block := range strings.SplitSeq(string(page), "```sh\n") {
		if commands, _, _ := strings.Cut(block, "```"); strings.Contains(commands, text) {
			return commands
		}
	}
	t.Fatalf("README.md has no commands with %s", text)
	return ""
}

// README's commands work when pasted one block after the other, and a second time: with a Redis and a port of the
// test's, and nothing else changed.
func TestReadmeCommands(t *testing.T) {
	dir := t.TempDir()
	testkit.Must(t, os.Symlink(binary(t), filepath.Join(dir, "authsession")))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	addr := free.Addr().String()
	testkit.Must(t, free.Close())
	redis := redistest.Addr(t)
	host, port, err := net.SplitHostPort(redis)
	testkit.Must(t, err)
	const endOfAnswer = "echo ---\n"
	script := "trap 'kill $!; wait' EXIT\n" + readmeCommands(t, "./authsession keygen") + endOfAnswer +
		readmeCommands(t, "curl -X POST http://localhost:8080") + endOfAnswer
	run := func(script string) (output string) {
		t.Helper()
		here := strings.NewReplacer("redis://localhost:6379", "redis://"+redis, "http://localhost:8080", "http://"+addr,
			"redis-cli ", "redis-cli -h "+host+" -p "+port+" ").Replace(script)
		c := exec.Command("bash", "-c", here)
		c.Dir, c.Env = dir, append(os.Environ(), "ADDR="+addr)
		var stderr testkit.Log
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%v: %s\n%s", err, out, stderr.String())
		}
		return string(out)
	}
	var session testkit.SessionAnswer
	for range 2 {
		answers := strings.Split(run(script), endOfAnswer[len("echo "):])
		if len(answers) != 3 {
			t.Fatalf("output = %q, want two answers", answers)
		}
		for _, answer := range answers[:2] {
			lines := strings.Split(strings.TrimSpace(answer), "\n") // keygen prints the key set, too
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &session); err != nil || len(session.SessionID) < 22 {
				t.Errorf("answer = %q, %v, want a session", answer, err)
			}
		}
	}
	if _, err := exec.LookPath("redis-cli"); err != nil {
		return // no redis-server came with it
	}
	record := run("sess_id=" + session.SessionID + "\n" + readmeCommands(t, "redis-cli GETDEL"))
	first, second, _ := strings.Cut(record, "\n")
	if !strings.Contains(first, `"id":"`+session.ID+`"`) || strings.TrimSpace(second) != first {
		t.Errorf("GET and GETDEL of the record = %q, want it twice", record)
	}
}
