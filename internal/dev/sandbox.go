package dev

import (
	"cmp"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

// sandbox plays the consent page, with a front page to begin at and an app's page to come back to.
//
// It is also the example for the consent page's author: all it knows of a session is the record in Redis, which it
// reads by GET to show the page and by GETDEL to end the flow. A real page also authenticates the end user, and says in
// frame-ancestors who may frame it; here everyone may. Its methods are safe for concurrent use.
type sandbox struct {
	redis     redis.Cmdable
	keyPrefix string // of the records
	log       *slog.Logger
	url       string // the sandbox's own, ending in /
	api       string // the service's URL, without a path
	token     string // with which the front page creates sessions
	formKey   []byte // signs forms; the replicas of a real page share it

	mu    sync.Mutex
	flows []flow // the last sessions, the latest change first
}

const maxFlows = 20 // that the front page lists

// flow is the way of one session through the sandbox.
type flow struct {
	secret  string
	record  record
	outcome string // so far
	ended   bool
}

// routes returns the sandbox's pages.
func (s *sandbox) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.show)
	mux.HandleFunc("POST /{$}", s.decide)
	mux.HandleFunc("GET /sessions", s.list)
	mux.Handle("POST /sessions", http.NewCrossOriginProtection().Handler(http.HandlerFunc(s.create)))
	mux.HandleFunc("GET /callback", callback) // this URI and the next are exampleBody's
	mux.HandleFunc("GET /callback/cancelled", callback)
	return mux
}

// template has variables like $title, which os.Expand replaces. A page has only those parts whose variable, named in
// the comment above the part, has a value. html/template would add 8 MB to the binary.
//
//go:embed sandbox.html
var template string

// writePage writes a page with the values of template's variables, which it escapes. It adds the nonce to values.
func writePage(w http.ResponseWriter, status int, values map[string]string) {
	nonce := rand.Text()
	values["nonce"] = nonce
	// There is no form-action, because Chromium applies it to every redirect after the POST, and the partner's URI may
	// redirect to anywhere.
	policy := "default-src 'none'; base-uri 'none'; script-src 'nonce-" + nonce + "'; style-src 'nonce-" + nonce + "'"
	if values["sessions"] != "" {
		policy += "; connect-src 'self'"
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	for part := range strings.SplitSeq(template, "<!-- if ") {
		if name, text, _ := strings.Cut(part, " -->\n"); values[name] != "" {
			_, _ = io.WriteString(w, os.Expand(text, func(name string) string { return html.EscapeString(values[name]) }))
		}
	}
}

// observer is a ResponseWriter of the service that lists each new session.
type observer struct {
	http.ResponseWriter
	sandbox *sandbox
}

// Write gets whole answers, because the service writes each at once. Only those about a new session have a session_id.
func (o observer) Write(answer []byte) (int, error) {
	var created struct {
		Secret string `json:"session_id"`
	}
	if json.Unmarshal(answer, &created) == nil && created.Secret != "" {
		if rec, err := o.sandbox.load(o.sandbox.redis.Get, created.Secret); err == nil {
			o.sandbox.note(flow{secret: created.Secret, record: rec, outcome: "waits for its end user"})
		}
	}
	return o.ResponseWriter.Write(answer)
}

// Unwrap is for http.ResponseController.
func (o observer) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// note lists f first, in place of what was listed of its session.
func (s *sandbox) note(f flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flows = slices.DeleteFunc(s.flows, func(old flow) bool { return old.secret == f.secret })
	s.flows = append([]flow{f}, s.flows[:min(len(s.flows), maxFlows-1)]...)
}

// list is GET /sessions: the last sessions as JSON, each as the lines that the front page shows.
func (s *sandbox) list(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	flows := slices.Clone(s.flows)
	s.mu.Unlock()
	rows := [][]string{}
	for _, f := range flows {
		row := []string{f.outcome, f.record.ID, f.record.ClientID + " for " + f.record.EndUserID}
		if !f.ended {
			row = append(row, remaining(time.Unix(f.record.ExpiresAt, 0))+" left")
			if _, err := s.load(s.redis.Get, f.secret); errors.Is(err, redis.Nil) {
				row[0] = "expired, or used by another page"
			}
		}
		rows = append(rows, row)
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, encode(rows))
}

// remaining formats the time until then for people.
func remaining(then time.Time) string {
	left := max(time.Until(then), 0).Truncate(time.Second)
	return strings.NewReplacer("h", " h ", "m", " min ", "s", " s").Replace(left.String()) // 1h2m3s is 1 h 2 min 3 s
}

// exampleBody is a request's body for a session that comes back to the app at base, a URL ending in /.
func exampleBody(base string) string {
	return `{"end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", "redirect_uri": "` + base + `callback", ` +
		`"cancel_uri": "` + base + `callback/cancelled"}`
}

// writeFront writes the page to begin at. The arguments are "" until its button has been used.
func writeFront(w http.ResponseWriter, request, answer, authURL string) {
	writePage(w, http.StatusOK, map[string]string{
		"title": "Try an auth session", "sessions": fmt.Sprint(maxFlows),
		"text":    "This is authsession -dev: the service, and stand-ins for all that is around it.",
		"request": request, "answer": answer, "auth": authURL,
	})
}

// create is the front page's button: it does what a partner's backend does, and shows the request and the response.
func (s *sandbox) create(w http.ResponseWriter, r *http.Request) {
	target, body := s.api+"/auth/session", exampleBody(s.url)
	shown := "POST " + target + "\nAuthorization: Bearer " + s.token[:min(len(s.token), 16)] +
		"…\nContent-Type: application/json\n\n" + body
	request, err := http.NewRequestWithContext(r.Context(), http.MethodPost, target, strings.NewReader(body))
	if err != nil {
		panic(err) // of an address that the service listens on
	}
	request.Header = http.Header{"Authorization": {"Bearer " + s.token}, "Content-Type": {"application/json"}}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		writeFront(w, shown, err.Error(), "")
		return
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body)
	var created struct {
		AuthURL string `json:"auth_url"`
	}
	_ = json.Unmarshal(answer, &created) // an error has no auth_url
	writeFront(w, shown, response.Status+"\n\n"+string(answer), created.AuthURL)
}

// callback is the app's page that the browser comes back to. It shows the parameters that came along.
func callback(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	values := map[string]string{"title": "Back at the app: nothing came along",
		"text": "A real app has this page at its redirect_uri and cancel_uri."}
	if query.Has("error") {
		values["title"] = "Back at the app: no consent"
	} else if query.Has("consent_id") {
		values["title"] = "Back at the app: consent given"
	}
	for _, name := range []string{"consent_id", "error", "error_type", "error_id", "error_description", "error_uri"} {
		values[name] = query.Get(name)
		query.Del(name)
	}
	values["own"] = cmp.Or(query.Encode(), "nothing")
	writePage(w, http.StatusOK, values)
}
