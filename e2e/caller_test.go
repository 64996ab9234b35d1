package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// caller has a connection of its own, and is cheap enough to have thousands.
type caller struct{ conn net.Conn }

// dial connects n callers.
func (s *service) dial(t *testing.T, n int) []*caller {
	t.Helper()
	callers := make([]*caller, n)
	for i := range callers {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		testkit.Must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		callers[i] = &caller{conn}
	}
	return callers
}

// hangUp ends the callers' connections.
func hangUp(callers []*caller) {
	for _, c := range callers {
		_ = c.conn.Close()
	}
}

// rawPost is a whole request.
func rawPost(token string) []byte {
	return fmt.Appendf(nil, "POST /auth/session HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer %s\r\n"+
		"Content-Length: %d\r\n\r\n%s", token, len(goodBody), goodBody)
}

var contentLength = regexp.MustCompile(`\r\nContent-Length: (\d+)\r\n`)

// do sends a request and reads the answer. It reads only the status from that, and leaves the whole as it came in the
// body, for whole to read.
func (c *caller) do(request []byte) (done call) {
	done.start = time.Now()
	_ = c.conn.SetDeadline(done.start.Add(20 * time.Second))
	_, done.err = c.conn.Write(request)
	answer := make([]byte, 0, 2<<10)
	for done.err == nil {
		var n int
		n, done.err = c.conn.Read(answer[len(answer):cap(answer)])
		answer = answer[:len(answer)+n]
		head := bytes.Index(answer, []byte("\r\n\r\n"))
		if head < 0 {
			continue
		}
		length := contentLength.FindSubmatch(answer[:head+2])
		if length == nil || len(answer) == head+4+int(number(string(length[1]))) {
			break
		}
	}
	done.took = time.Since(done.start)
	if done.err == nil {
		done.answer.Status, done.answer.Body = int(number(string(answer[9:12]))), answer
	}
	return done
}

// whole is the answer that do has left as it came.
func whole(t *testing.T, c call) testkit.Answer {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.answer.Body)), nil)
	return testkit.ReadAnswer(t, response, err)
}

// inFlight is how many requests for a session are in work. METRICS_ADDR must be set.
func (s *service) inFlight(t *testing.T) int {
	t.Helper()
	gauge := regexp.MustCompile(`(?m)^authsession_http_requests_in_flight (\d+)$`).FindStringSubmatch(s.scrape(t))
	if gauge == nil {
		t.Fatal("/metrics has no authsession_http_requests_in_flight")
	}
	return int(number(gauge[1]))
}

const attackTime = 15 * time.Second // at most, for an attack

// attack is what the attacking process does: each of its connections sends a request, and again after each answer.
type attack struct {
	Addr        string
	Connections int
	Request     []byte
}

// attackMain is the attacking process. It reads an attack from stdin, says when it is connected, and ends with stdin.
func attackMain() {
	var a attack
	if err := json.NewDecoder(os.Stdin).Decode(&a); err != nil {
		panic(err)
	}
	var connected sync.WaitGroup
	for range a.Connections {
		connected.Add(1)
		go func() {
			c, err := net.Dial("tcp", a.Addr)
			if err != nil {
				panic(err)
			}
			connected.Done()
			for conn := (&caller{c}); conn.do(a.Request).err == nil; {
			}
			_, _ = io.Copy(io.Discard, c)
		}()
	}
	connected.Wait()
	fmt.Println("connected")
	time.AfterFunc(attackTime, func() { os.Exit(1) })
	_, _ = io.Copy(io.Discard, os.Stdin)
}
