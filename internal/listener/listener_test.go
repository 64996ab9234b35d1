package listener

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/testkit"
)

func listen(t *testing.T, most int) *Listener {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { _ = tcp.Close() })
	return New(tcp, most)
}

func dial(t *testing.T, l *Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	testkit.Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	testkit.Must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c
}

func accept(t *testing.T, l *Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	testkit.Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A connection reads nothing where it is asked for one byte, and all that came where it is asked again or for more.
func TestRead(t *testing.T) {
	l := listen(t, 1)
	caller := dial(t, l)
	c := accept(t, l)
	_, err := io.WriteString(caller, "abcdef")
	testkit.Must(t, err)
	for i, step := range []struct {
		ask  int
		want string
	}{
		{1, ""}, {1, "a"}, {1, ""}, {1, "b"}, {2, "cd"}, {1, ""}, {2, "ef"}, {1, ""},
	} {
		p := make([]byte, step.ask)
		testkit.Must(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
		n, err := c.Read(p)
		if err != nil || string(p[:n]) != step.want {
			t.Fatalf("read %d of %d bytes = %q, %v, want %q", i, step.ask, p[:n], err, step.want)
		}
	}
}

// A connection beyond the most is accepted when another one ends, and not before.
func TestMost(t *testing.T) {
	l := listen(t, 2)
	var accepted atomic.Int64
	conns := make(chan net.Conn, 4)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			conns <- c
		}
	}()
	for range 4 {
		dial(t, l)
	}
	for want := int64(2); want <= 4; want++ {
		testkit.WaitFor(t, 5*time.Second, "connections", func() bool { return accepted.Load() == want })
		time.Sleep(20 * time.Millisecond) // for one too many to come
		if n := accepted.Load(); n != want {
			t.Fatalf("%d connections were accepted, want %d", n, want)
		}
		c := <-conns
		_, _ = c.Close(), c.Close() // the second counts for nothing
	}
}

// StopReading ends a read under way, and later ones, but no write.
func TestStopReading(t *testing.T) {
	l := listen(t, 1)
	caller := dial(t, l)
	c := accept(t, l)
	failed := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 2))
		failed <- err
	}()
	time.Sleep(20 * time.Millisecond) // mostly makes it a read under way
	l.StopReading()
	if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %v, want %v", err, os.ErrDeadlineExceeded)
	}
	_, err := io.WriteString(c, "x")
	testkit.Must(t, err)
	if _, err := io.ReadFull(caller, make([]byte, 1)); err != nil {
		t.Errorf("the caller reads %v", err)
	}
}

// What net/http refuses by itself is counted, and no answer of a handler's is.
func TestRefused(t *testing.T) {
	l := listen(t, 10)
	srv := &http.Server{MaxHeaderBytes: 1, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, "HTTP/1.1 400 \r\nContent-Type: text/plain\r\n")
		})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	want := map[int]uint64{400: 0, 417: 0, 431: 0, 501: 0, 505: 0}
	for request, status := range map[string]int{
		"GET / HTTP/1.1\r\n\r\n":                                                   400,
		"garbage\r\n\r\n":                                                          400,
		"GET / HTTP/1.1\r\nHost: x\r\nExpect: y\r\n\r\n":                           417,
		"GET / HTTP/1.1\r\nHost: x\r\nA: " + string(make([]byte, 8<<10)):           431,
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n":            501,
		"GET / HTTP/9.1\r\nHost: x\r\n\r\n":                                        505,
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                                        0,
		"GET / HTTP/1.0\r\n\r\n":                                                   0,
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc":               0,
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded: y\r\n\r\n": 0,
	} {
		c := dial(t, l)
		_, err := io.WriteString(c, request)
		testkit.Must(t, err)
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		testkit.Must(t, err)
		if status == 0 {
			status = 400
		} else {
			want[status]++
		}
		if response.StatusCode != status {
			t.Errorf("%.40q = %d, want %d", request, response.StatusCode, status)
		}
	}
	for _, status := range Statuses {
		if got := l.Refused(status); got != want[status] {
			t.Errorf("Refused(%d) = %d, want %d", status, got, want[status])
		}
	}
}

// A header has 200 lines at most, wherever its packets begin. Lines of a body do not count.
func TestHeaderLines(t *testing.T) {
	l := listen(t, 10)
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	const line = "a: b\r\n"
	head := func(lines int) string {
		return "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n" + strings.Repeat(line, lines-3)
	}
	body := strings.Repeat("\n", 1000)
	for name, test := range map[string]struct {
		parts []string
		want  int
	}{
		"200 lines":                      {[]string{head(200), "\r\n" + body}, 200},
		"201 lines":                      {[]string{head(201)}, 431},
		"201 lines in two packets":       {[]string{head(199), line + line + "a: b"}, 431},
		"201 lines and the end":          {[]string{head(150), strings.Repeat(line, 50), line}, 431},
		"end in the next packet":         {[]string{head(10), "\r\n", body}, 200},
		"end between two packets":        {[]string{head(10) + "\r", "\n", body}, 200},
		"end before its last byte":       {[]string{head(9) + "a: b\r\n\r", "\n" + body}, 200},
		"end without carriage returns":   {[]string{head(9) + "a: b\n", "\n" + body}, 200},
		"carriage returns are no end":    {[]string{head(9) + "a: b", "\r", "\n", strings.Repeat(line, 192)}, 431},
		"all in one packet, many lines":  {[]string{head(300) + "\r\n" + body}, 200}, // nothing is held open
		"another request, 200 lines too": {[]string{head(200), "\r\n" + body, head(200), "\r\n" + body}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, l)
			testkit.Must(t, c.(*net.TCPConn).SetNoDelay(true))
			for _, part := range test.parts {
				_, err := io.WriteString(c, part)
				testkit.Must(t, err)
				time.Sleep(20 * time.Millisecond) // mostly makes it a packet of its own
			}
			in := bufio.NewReader(c)
			for range strings.Count(strings.Join(test.parts, ""), "POST") {
				response, err := http.ReadResponse(in, nil)
				testkit.Must(t, err)
				if response.StatusCode != test.want {
					t.Errorf("answer = %d, want %d", response.StatusCode, test.want)
				}
			}
		})
	}
}
