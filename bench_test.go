package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What a request costs, and its parts. `go run ./bench` measures the whole process.
//
//	go test -run '^$' -bench . -benchmem .

const benchBody = `{ "cancel_uri": "https://acme.com/cancel", "end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", "institution_id": "10", "redirect_uri": "https://acme.com/success" }`

// BenchmarkRequest is a good request through routes, its record's write to Redis and its
// log line to a file included, net/http's own work excluded.
func BenchmarkRequest(b *testing.B) {
	ts := newTestServer(b, map[string]string{"LOG_LEVEL": "info"}, func(s *server) {
		file, err := os.Create(filepath.Join(b.TempDir(), "log"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = file.Close() })
		s.log = slog.New(slog.NewJSONHandler(file, nil))
	})
	routes := ts.routes()
	body := strings.NewReader(benchBody)
	r := &http.Request{
		Method: "POST", URL: &url.URL{Path: "/auth/session"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Authorization": {"Bearer " + ecKey().sign(b, goodClaims())}, "Content-Type": {"application/json"}},
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

func BenchmarkToken(b *testing.B) {
	ts := newTestServer(b, nil)
	for _, key := range []testKey{rsaKey(), ecKey(), edKey()} {
		token := key.sign(b, goodClaims())
		b.Run("first/"+string(key.alg), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := ts.verifier.verifyAnew(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	token := rsaKey().sign(b, goodClaims())
	b.Run("remembered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ts.verifier.verify(token); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkBody(b *testing.B) {
	for name, body := range map[string]string{
		"usual": benchBody,
		"2KB":   strings.ReplaceAll(benchBody, "acme.com/", "acme.com/"+strings.Repeat("a", 2000)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := parseSessionRequest([]byte(body)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkURI(b *testing.B) {
	for _, uri := range []string{"https://acme.com/success", "https://acme.com/success?state=" + strings.Repeat("%41bc", 400), "com.example.app:/done"} {
		b.Run(fmt.Sprintf("%.12s/%d", uri[:8], len(uri)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := checkURI(uri); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPut is the store's write: one caller, and some 64 at once, whose writes share
// round trips.
func BenchmarkPut(b *testing.B) {
	s := openTestStore(b, "standalone", "redis://"+testRedisAddr(b), testPrefix(b), time.Second)
	value := []byte(strings.Repeat("v", 300))
	expiresAt := time.Now().Add(time.Hour).Unix()
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := s.put(sessionKey(s.prefix, "bench"), value, expiresAt); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32) // callers a core
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := s.put(sessionKey(s.prefix, "bench"), value, expiresAt); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
