package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/clients"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/time/rate"
)

// server is the HTTP side of the service.
type server struct {
	api
	metrics   metrics
	lines     io.Writer // gets a line for each request
	logLevel  slog.Level
	trusted   []netip.Prefix // proxies whose X-Forwarded-For is believed
	router    chi.Router
	overShare *rate.Limiter // refusals of clients that are over their share
}

// routes is the whole HTTP surface.
func (s *server) routes() http.Handler {
	r := chi.NewRouter()
	for _, path := range []string{"/auth/session", "/v1/auth/session"} {
		r.Post(path, s.handle(path, s.createSession))
	}
	for path, f := range map[string]handler{"/livez": s.live, "/readyz": s.ready, "/openapi.yaml": s.description} {
		r.Get(path, s.handle(path, f))
		r.Head(path, s.handle(path, f))
	}
	if s.issue != nil {
		for path, f := range map[string]handler{"/token": s.mintToken, "/end-users": s.createEndUser} {
			r.Post(path, s.handle(path, f))
			r.Post("/v1"+path, s.handle("/v1"+path, f))
		}
	}
	none := s.handle("", s.noRoute)
	r.NotFound(none)
	r.MethodNotAllowed(none)
	s.router = r
	return r
}

// noRoute is 405 for a path that has other methods, else 404.
func (s *server) noRoute(_ http.ResponseWriter, r *http.Request, _ *note) error {
	path := r.URL.EscapedPath() // as it was sent, like chi: /%61uth is not /auth
	var allow []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		if s.router.Match(chi.NewRouteContext(), method, path) {
			allow = append(allow, method)
		}
	}
	if allow == nil {
		return notFound()
	}
	return methodNotAllowed(strings.Join(allow, ", "))
}

// metricsRoutes is what METRICS_ADDR serves.
func metricsRoutes(registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux
}

// maxConnections is how many callers' connections are open at once. One that waits for a request takes some 20 KB.
const maxConnections = 8192

// newHTTPServer sets the limits of a connection.
func newHTTPServer(h http.Handler, storeTimeout time.Duration, log *slog.Logger) *http.Server {
	const writeSlack = 5 * time.Second // for an answer on its way
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  bodyTimeout,
		WriteTimeout:                 bodyTimeout + bearer.MaxWait + storeTimeout + writeSlack,
		IdleTimeout:                  2 * time.Minute, // longer than gateways keep theirs
		MaxHeaderBytes:               8 << 10,         // net/http adds 4 KiB; a token has 8
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		DisableGeneralOptionsHandler: true, // OPTIONS * is 404 like any other path
	}
}

// handle makes f an http.Handler: it sets the headers that every answer has, writes the error that f returns or panics
// with, counts the request, and logs one line.
func (s *server) handle(route string, f handler) http.HandlerFunc {
	metrics := s.metrics.of(route)
	return func(w http.ResponseWriter, r *http.Request) {
		e := entry{start: time.Now(), requestID: r.Header.Get("X-Request-Id"), route: route, status: http.StatusOK}
		if !validRequestID(e.requestID) {
			e.requestID = rand.Text()
		}
		h, values := w.Header(), [...]string{e.requestID, "no-store", "nosniff"} // one allocation for three
		h["X-Request-Id"] = values[0:1:1]
		h["Cache-Control"] = values[1:2:2]
		h["X-Content-Type-Options"] = values[2:3:3]
		// A chunked request may have had a Content-Length too, which net/http does not tell. Whoever stands between may
		// have believed that one, so such a request is the connection's last (RFC 9112, section 6.1).
		unwanted := r.ContentLength != 0 && r.Method != http.MethodPost
		if unwanted || r.TransferEncoding != nil || s.draining.Load() { // a gateway's connections end before the listener
			h["Connection"] = []string{"close"}
		}
		if unwanted {
			skipBody(w)
		}
		if err := guard(f, w, r, &e.note); err != nil {
			apiErr, known := errors.AsType[*apiError](err)
			if !known {
				apiErr = fault(err)
			}
			e.status, e.error, e.errorID, e.cause = apiErr.status, apiErr.name, rand.Text(), apiErr.cause
			if e.cause == nil {
				e.cause = apiErr
			}
			writeError(w, r, apiErr, e.errorID)
		}
		e.took = time.Since(e.start)
		metrics.count(e.status, e.error, e.took)
		if s.clients != nil && e.bearer.ClientID != "" {
			s.metrics.countClient(e.client, e.status)
		}
		s.logRequest(r, &e)
		if errors.Is(e.cause, clients.ErrShare) {
			s.slowDown(w, r)
		}
	}
}

// panicError is a handler's panic, with where it was.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// guard runs f and returns its panic as an error. http.ErrAbortHandler goes on: it asks net/http to drop the
// connection.
func guard(f handler, w http.ResponseWriter, r *http.Request, n *note) (err error) {
	defer func() {
		if v := recover(); v == http.ErrAbortHandler {
			panic(v)
		} else if v != nil {
			err = &panicError{v, debug.Stack()}
		}
	}()
	return f(w, r, n)
}

// writeError answers with the six members of application/vnd.goa.error.
func writeError(w http.ResponseWriter, r *http.Request, e *apiError, id string) {
	body, err := json.Marshal(struct {
		Fault     bool   `json:"fault"`
		ID        string `json:"id"`
		Message   string `json:"message"`
		Name      string `json:"name"`
		Temporary bool   `json:"temporary"`
		Timeout   bool   `json:"timeout"`
	}{e.status == http.StatusInternalServerError, id, e.message, e.name, e.temporary, e.timeout})
	if err != nil {
		panic(err) // of strings and bools
	}
	body = append(body, '\n')
	h := w.Header()
	if e.header[0] != "" {
		h.Set(e.header[0], e.header[1])
	}
	if r.ContentLength > maxBody { // more than we would read to keep the connection
		h.Set("Connection", "close")
	}
	skipBody(w)
	h.Set("Content-Type", "application/vnd.goa.error")
	h.Set("Content-Length", strconv.Itoa(len(body))) // for slowDown, which sends it before the handler's end
	h.Set("Goa-Error", e.name)
	w.WriteHeader(e.status)
	_, _ = w.Write(body)
}

// skipBody has an answer not wait for a body that nobody wants. net/http reads up to 256 KiB of one before it sends the
// answer, so that the connection can be kept. Callers send headers and body at once, though not always in one packet:
// what is not there after 100 ms ends the connection. (EnableFullDuplex is no way out: after a broken body it takes
// what follows for the next request.)
func skipBody(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(100 * time.Millisecond))
}

// slowDown has a connection wait half a second before its next request, where clients over their share are refused more
// than 5,000 times a second. Or else one client that asks again at once on thousands of connections takes the processor
// from all others. A gateway's connection, with X-Forwarded-For in its requests, is other clients' too: it does not
// wait.
func (s *server) slowDown(w http.ResponseWriter, r *http.Request) {
	if r.Header["X-Forwarded-For"] == nil && !s.overShare.Allow() {
		_ = http.NewResponseController(w).Flush()
		time.Sleep(500 * time.Millisecond)
	}
}

// entry is what the log says of one request. Its fields and note's are the only way there: no token, session_id,
// end_user_id or URI.
type entry struct {
	note
	start     time.Time
	took      time.Duration
	requestID string
	route     string
	status    int
	error     string // the error's name; "": none
	errorID   string
	cause     error
}

// logRequest logs a caller's fault as Info and ours as Error. Good checks of health are Debug: there are many. The line
// is as slog's JSON handler writes it, but by hand: that saves 4% of a request's CPU.
func (s *server) logRequest(r *http.Request, e *entry) {
	level := slog.LevelInfo
	switch {
	case e.status >= http.StatusInternalServerError:
		level = slog.LevelError
	case e.status == http.StatusOK && (e.route == "/livez" || e.route == "/readyz"):
		level = slog.LevelDebug
	}
	if level < s.logLevel {
		return
	}
	line := e.start.Add(e.took).AppendFormat(append(make([]byte, 0, 512), `{"time":"`...), time.RFC3339Nano)
	line = append(append(append(line, `","level":"`...), level.String()...), `","msg":"request"`...)
	line = appendText(line, `,"request_id":`, e.requestID)
	line = appendText(line, `,"method":`, printable(r.Method))
	line = append(append(append(line, `,"route":"`...), e.route...), `","status":`...)
	line = strconv.AppendInt(line, int64(e.status), 10)
	line = strconv.AppendInt(append(line, `,"duration_us":`...), e.took.Microseconds(), 10)
	line = appendText(line, `,"remote_ip":`, remoteIP(r.RemoteAddr, r.Header["X-Forwarded-For"], s.trusted))
	line = appendText(line, `,"trace_id":`, traceID(r.Header["Traceparent"]))
	line = appendText(line, `,"client_id":`, printable(e.bearer.ClientID))
	line = appendText(line, `,"jti":`, printable(e.bearer.ID))
	line = appendText(line, `,"kid":`, printable(e.bearer.KeyID))
	line = appendText(line, `,"session":`, e.session)
	for i, name := range e.unknown {
		e.unknown[i] = printable(name)
	}
	line = appendTexts(line, `,"unknown_members":`, e.unknown)
	if e.error != "" {
		line = appendText(line, `,"error":`, e.error)
		line = appendText(line, `,"error_id":`, e.errorID)
		line = appendText(line, `,"cause":`, e.cause.Error())
	}
	if panicked, ok := errors.AsType[*panicError](e.cause); ok {
		line = appendText(line, `,"stack":`, string(panicked.stack))
	}
	_, _ = s.lines.Write(append(line, "}\n"...))
}

// remoteIP is a caller's address: the peer's, or, behind trusted proxies, the rightmost of X-Forwarded-For that is not
// theirs. What stands left of that, or of what is no address, is anybody's word.
func remoteIP(peer string, forwarded []string, trusted []netip.Prefix) string {
	host, _, _ := net.SplitHostPort(peer)
	if trusted == nil {
		return host
	}
	ip, ok := parseHop(host)
	if !ok {
		return host
	}
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for _, hop := range slices.Backward(hops) {
		if !slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			break
		}
		next, ok := parseHop(strings.TrimSpace(hop))
		if !ok {
			break
		}
		ip = next
	}
	return ip.String()
}

// parseHop takes an address as proxies write it: also in brackets, and with a port.
func parseHop(text string) (ip netip.Addr, ok bool) {
	if withPort, err := netip.ParseAddrPort(text); err == nil {
		return withPort.Addr().Unmap().WithZone(""), true
	}
	if inner, opened := strings.CutPrefix(text, "["); opened {
		text = strings.TrimSuffix(inner, "]")
	}
	ip, err := netip.ParseAddr(text)
	return ip.Unmap().WithZone(""), err == nil
}

// traceID is the trace-id of a valid traceparent (W3C Trace Context, section 3.2); "" is none.
func traceID(values []string) string {
	if len(values) != 1 || len(values[0]) < 55 {
		return ""
	}
	text := values[0]
	version, rest, id, parent := text[:2], text[55:], text[3:35], text[36:52]
	for i := range 55 {
		c, dash := text[i], i == 2 || i == 35 || i == 52
		if dash != (c == '-') || !dash && !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return ""
		}
	}
	if version == "ff" || rest != "" && (version == "00" || rest[0] != '-') ||
		strings.Trim(id, "0") == "" || strings.Trim(parent, "0") == "" {
		return ""
	}
	return id
}

// printable is what the log says of a text that a caller chose: its first 64 bytes. If those have more than printable
// ASCII, they are escaped as in Go's strings.
func printable(s string) string {
	s = s[:min(len(s), 64)]
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		return s
	}
	quoted := strconv.QuoteToASCII(s)
	return quoted[1 : len(quoted)-1]
}

// validRequestID tells whether a caller's X-Request-Id is one we take over.
func validRequestID(id string) bool {
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	return 1 <= len(id) && len(id) <= 64 && strings.Trim(id, allowed) == ""
}
