package main

import (
	"strings"
	"testing"
	"time"
)

// A conn that passes over reads of one byte loses none, wherever a request is cut.
func TestConn(t *testing.T) {
	ts := newTestServer(t, nil)
	request := ts.goodRequest(t)
	head, body, _ := strings.Cut(request, "\r\n\r\n")
	// net/http has a buffer of 4096 bytes, and reads what has room behind the line it is at.
	const buffer = 4096
	long := head + "\r\nX-Long: " + strings.Repeat("a", 2*buffer) + "\r\n\r\n" + body
	full := len(head+"\r\n") + buffer
	for name, parts := range map[string][]string{
		"byte by byte":          strings.Split(request, ""),
		"last byte":             {request[:len(request)-1], request[len(request)-1:]},
		"body of one byte":      {strings.Replace(head, goodLength, "Content-Length: 1", 1) + "\r\n\r\n", "x"},
		"room for one byte":     {long[:buffer], long[buffer : full-1], long[full-1:]},
		"room for none":         {long[:buffer], long[buffer:full], long[full:]},
		"body right behind":     {head + "\r\n\r\n", body},
		"pipelined, and a byte": {request + request[:1], request[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ts.dial(t)
			_ = w.SetNoDelay(true)
			answers := 1 + strings.Count(name, "pipelined")
			for i, part := range parts {
				w.send(t, part)
				if len(parts) < 10 || i == 0 {
					time.Sleep(20 * time.Millisecond) // a packet of its own
				}
			}
			for range answers {
				if a := w.answer(t, "POST"); name == "body of one byte" {
					wantError(t, a, 400, "bad_request")
				} else {
					ts.wantSession(t, a)
				}
			}
			w.send(t, request) // the connection is still good
			ts.wantSession(t, w.answer(t, "POST"))
		})
	}
}
