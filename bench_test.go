package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// What a request costs, and its parts; the packages have benchmarks of their own. `go run ./bench` measures the whole
// process.
//
//	go test -run '^$' -bench . -benchmem . ./internal/...

const benchBody = `{ "cancel_uri": "https://acme.com/cancel", "end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", ` +
	`"institution_id": "10", "redirect_uri": "https://acme.com/success" }`

// BenchmarkRequest is a good request through routes, its record's write to Redis and its log line to a file included,
// net/http's own work excluded.
func BenchmarkRequest(b *testing.B) { benchmarkRequest(b, nil) }

func benchmarkRequest(b *testing.B, env map[string]string) {
	ts := newTestServer(b, env, func(s *server) {
		file, err := os.Create(filepath.Join(b.TempDir(), "log"))
		testkit.Must(b, err)
		b.Cleanup(func() { _ = file.Close() })
		s.lines, s.logLevel = file, slog.LevelInfo
	})
	routes := ts.routes()
	body := strings.NewReader(benchBody)
	r := &http.Request{
		Method: "POST", URL: &url.URL{Path: "/auth/session"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        ts.jsonHeader(b),
		Body:          io.NopCloser(body),
		ContentLength: body.Size(),
		RemoteAddr:    "127.0.0.1:50000",
	}
	w := &discardWriter{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		body.Reset(benchBody)
		clear(w.header)
		routes.ServeHTTP(w, r)
	}
	if w.written == 0 || w.header.Get("Content-Type") != "application/json" {
		b.Fatalf("the answer's header is %v", w.header)
	}
}

// discardWriter is an http.ResponseWriter that keeps the header only.
type discardWriter struct {
	header  http.Header
	written int
}

func (w *discardWriter) Header() http.Header { return w.header }
func (w *discardWriter) WriteHeader(int)     {}
func (w *discardWriter) Write(p []byte) (int, error) {
	w.written += len(p)
	return len(p), nil
}

func BenchmarkBody(b *testing.B) {
	for name, body := range map[string]string{
		"usual": benchBody,
		"2KB":   strings.ReplaceAll(benchBody, "acme.com/", "acme.com/"+strings.Repeat("a", 2000)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := parseBody([]byte(body)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPut is the store's write: by one caller, and by some 64 at once, whose writes share round trips.
func BenchmarkPut(b *testing.B) {
	s := openTestStore(b, "standalone", "redis://"+redistest.Addr(b), redistest.Prefix(b), time.Second)
	value := []byte(strings.Repeat("v", 300))
	name := hashSecret("bench")
	expiresAt := time.Now().Add(time.Hour).Unix()
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := s.put("acme", name, value, expiresAt); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32) // callers a core
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := s.put("acme", name, value, expiresAt); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
