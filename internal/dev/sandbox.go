package dev

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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
	formKey   []byte // signs forms; the replicas of a real page share it

	issue func() (token string) // for the front page, which creates sessions

	mu      sync.Mutex
	flows   []flow              // the last sessions, the newest first
	created []map[string]string // the values of the pages that create made, the newest first
}

const maxFlows = 20 // sessions that the front page lists, and pages of its form that can be reloaded

// flow is the way of one session through the sandbox.
type flow struct {
	secret  string
	record  record
	outcome string // so far
	ended   bool
}

// routes returns the sandbox's pages. They answer 403 to a Host that is no loopback name, because with DNS rebinding
// another site's name leads to 127.0.0.1, and browsers let that site's pages read the answers.
func (s *sandbox) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.show)
	mux.HandleFunc("POST /{$}", s.decide)
	mux.HandleFunc("GET /sessions", s.list)
	mux.Handle("POST /sessions", http.NewCrossOriginProtection().Handler(http.HandlerFunc(s.create)))
	mux.HandleFunc("GET /sessions/{id}", s.showCreated)
	mux.HandleFunc("GET /callback", s.callback) // this URI and the next are exampleBody's
	mux.HandleFunc("GET /callback/cancelled", s.callback)
	mux.HandleFunc("GET /errors/{type}", showErrorType)
	pages := http.MaxBytesHandler(mux, 64<<10)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := (&url.URL{Host: r.Host}).Hostname()
		address, _ := netip.ParseAddr(host) // no loopback address if it is none
		if !strings.EqualFold(host, "localhost") && !address.IsLoopback() {
			http.Error(w, "The sandbox answers only to localhost and loopback addresses.", http.StatusForbidden)
			return
		}
		pages.ServeHTTP(w, r)
	})
}

// template has variables like $title, which os.Expand replaces. A page has only those parts whose variable, named in
// the comment above the part, has a value. html/template would add 8 MB to the binary.
//
//go:embed sandbox.html
var template string

// writePage writes a page with the values of template's variables, which it escapes.
func writePage(w http.ResponseWriter, status int, values map[string]string) {
	nonce := rand.Text()
	values = maps.Clone(values)
	values["nonce"] = nonce
	// There is no form-action, because Chromium applies it to every redirect after the POST, and the partner's URI may
	// redirect to anywhere.
	policy := "default-src 'none'; base-uri 'none'; img-src data:; " +
		"script-src 'nonce-" + nonce + "'; style-src 'nonce-" + nonce + "'"
	if values["sessions"] != "" {
		policy += "; connect-src 'self'; frame-ancestors 'none'"
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

// observe lists a session that the service has created.
func (s *sandbox) observe(secret string) {
	if rec, err := s.load(s.redis.Get, secret); err == nil {
		s.note(flow{secret: secret, record: rec, outcome: "waits for its end user"})
	}
}

// note adds f at the front of the list, or in place of its session's entry.
func (s *sandbox) note(f flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.flows, func(old flow) bool { return old.secret == f.secret }); i >= 0 {
		s.flows[i] = f
		return
	}
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
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
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

// writeFront writes the page to begin at, whose form has the members of exampleBody.
func (s *sandbox) writeFront(w http.ResponseWriter) {
	values := map[string]string{"title": "Try an auth session", "intro": "shown", "sessions": fmt.Sprint(maxFlows),
		"text": "This is authsession -dev: the service, and stand-ins for all that is around it."}
	_ = json.Unmarshal([]byte(exampleBody(s.url)), &values) // adds its members; an error would leave the form empty
	writePage(w, http.StatusOK, values)
}

// create is the front page's form: it does what a partner's backend does. The redirect leads to a page that shows the
// request and the response, so that a reload creates no session.
func (s *sandbox) create(w http.ResponseWriter, r *http.Request) {
	values, members := map[string]string{"id": rand.Text(), "sessions": fmt.Sprint(maxFlows)}, map[string]any{}
	for name := range strings.FieldsSeq("end_user_id institution_id redirect_uri cancel_uri permissions arrangement_id") {
		if text := strings.ToValidUTF8(r.PostFormValue(name), "\uFFFD"); text != "" {
			values[name], members[name] = text, text
		}
	}
	if names := values["permissions"]; names != "" {
		members["permissions"] = strings.FieldsFunc(names, func(c rune) bool { return c == ',' || c == ' ' })
	}
	token, target, body := s.issue(), s.api+"/auth/session", indent(encode(members))
	values["request"] = "POST " + target + "\nAuthorization: Bearer " + token[:16] +
		"…\nContent-Type: application/json\n\n" + body
	values["curl"] = curl(target, token, body)
	send(r.Context(), target, token, body, values)
	s.mu.Lock()
	s.created = append([]map[string]string{values}, s.created[:min(len(s.created), maxFlows-1)]...)
	s.mu.Unlock()
	http.Redirect(w, r, "/sessions/"+values["id"], http.StatusSeeOther)
}

// curl returns a shell command that sends body to target.
func curl(target, token, body string) string {
	return "curl -sS -X POST " + target + " \\\n  -H 'Authorization: Bearer " + token +
		"' \\\n  -H 'Content-Type: application/json' \\\n  -d '" + strings.ReplaceAll(body, "'", `'\''`) + "'"
}

// send sends body to the service, and adds to values what the page says about the response.
func send(ctx context.Context, target, token, body string, values map[string]string) {
	request, _ := http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(body)) // target is valid
	request.Header = http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"}}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		values["title"], values["answer"] = "The service does not answer", err.Error()
		return
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body) // as much as there is
	var result struct {
		AuthURL string `json:"auth_url"`
		Message string `json:"message"`
	}
	_ = json.Unmarshal(answer, &result) // without JSON, the page shows the text alone
	values["title"], values["text"] = "A session is ready", "The app sends the end user's browser to its auth_url."
	values["auth"] = result.AuthURL
	var header strings.Builder
	if result.AuthURL == "" {
		values["title"] = "The service answered " + response.Status
		if response.StatusCode == http.StatusBadRequest { // a member of the form is wrong
			values["open"] = "open"
		}
		values["text"] = strings.ReplaceAll(result.Message, "; ", "\n") // a line for each member
		_ = response.Header.Write(&header)                              // Retry-After, for example
	}
	values["answer"] = response.Status + "\n" + header.String() + "\n" + indent(string(answer))
}

// indent returns JSON with a line for each member, and other text as it is.
func indent(text string) string {
	value := jsontext.Value(text)
	_ = value.Indent(jsontext.WithIndent("  ")) // an error leaves it as it is
	return string(value)
}

// showCreated is GET /sessions/{id}: what create did. It leads to the front page if that is no longer known.
func (s *sandbox) showCreated(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	created := s.created // its maps do not change
	s.mu.Unlock()
	i := slices.IndexFunc(created, func(values map[string]string) bool { return values["id"] == r.PathValue("id") })
	if i < 0 {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	writePage(w, http.StatusOK, created[i])
}
