package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
)

const maxFlows = 20 // that the front page lists

// flow is a session on its way.
type flow struct {
	secret  string
	record  *record // as it was made
	outcome string  // so far
	ended   bool
}

// Made takes note of a session that the service has made, for the front page.
func (b *Sandbox) Made(secret string) {
	s, err := b.load(context.Background(), b.redis.Get, secret)
	if err != nil {
		return // gone already, or Redis is
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = slices.Insert(b.last, 0, flow{secret: secret, record: s, outcome: "waits for its end user"})
	b.last = b.last[:min(len(b.last), maxFlows)]
}

// note changes what is known of a session, if it is one of the last and has not ended.
func (b *Sandbox) note(secret string, change func(*flow)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.last {
		if f := &b.last[i]; f.secret == secret && !f.ended {
			change(f)
		}
	}
}

// list is GET /sessions: the last sessions as JSON, each as lines for the front page to show.
func (b *Sandbox) list(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	last := slices.Clone(b.last)
	b.mu.Unlock()
	rows := [][]string{}
	for _, f := range last {
		left := time.Until(time.Unix(f.record.ExpiresAt, 0))
		if !f.ended {
			if _, err := b.load(r.Context(), b.redis.Get, f.secret); errors.Is(err, redis.Nil) {
				f.outcome, f.ended = "used by another page", true
				if left <= 0 {
					f.outcome = "expired"
				}
				b.note(f.secret, func(known *flow) { *known = f })
			}
		}
		row := []string{f.outcome, f.record.ID, f.record.ClientID + " for " + f.record.EndUserID}
		if !f.ended {
			row = append(row, remaining(left)+" left")
		}
		rows = append(rows, row)
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	_ = json.MarshalWrite(w, rows) // a browser that has gone
}

// remaining is a time for people, in the two units that matter.
func remaining(left time.Duration) string {
	seconds := max(int(left/time.Second), 0)
	switch days, hours, minutes := seconds/86400, seconds/3600%24, seconds/60%60; {
	case days == 1:
		return fmt.Sprintf("1 day %d h", hours)
	case days > 1:
		return fmt.Sprintf("%d days %d h", days, hours)
	case hours > 0:
		return fmt.Sprintf("%d h %d min", hours, minutes)
	default:
		return fmt.Sprintf("%d min %d s", minutes, seconds%60)
	}
}

// Example is the body of a request for a session that comes back to the sandbox at self.
func Example(self string) string {
	return `{"end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", "redirect_uri": "` + self + `callback", ` +
		`"cancel_uri": "` + self + `callback/cancelled"}`
}

// front is the page to begin at.
func front() view {
	return view{status: http.StatusOK, title: "Try an auth session",
		text:  "This is authsession -dev: the service, and stand-ins for all that is around it.",
		parts: []string{"front", "sessions"}}
}

// create is the front page's button: what a partner's backend does, shown.
func create(ctx context.Context, self, api, token string) view {
	v := front()
	v.parts = []string{"front", "made", "sessions"}
	body := Example(self)
	v.values = map[string]string{"request": "POST " + api + "/auth/session\nAuthorization: Bearer " +
		token[:min(len(token), 16)] + "…\nContent-Type: application/json\n\n" + body}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, api+"/auth/session", strings.NewReader(body))
	if err != nil {
		panic(err) // of a URL that somebody listens on
	}
	request.Header = http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"}}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		v.values["answer"] = err.Error()
		return v
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body)
	v.values["answer"] = response.Status + "\n\n" + string(answer)
	var made struct {
		AuthURL string `json:"auth_url"`
	}
	if json.Unmarshal(answer, &made) == nil && made.AuthURL != "" {
		v.parts, v.values["auth"] = slices.Insert(v.parts, 2, "open"), made.AuthURL
	}
	return v
}

// callback is an app's page that the browser comes back to. It shows what came along.
func callback(r *http.Request) view {
	query := r.URL.Query()
	v := view{status: http.StatusOK, title: "Back at the app: nothing came along", parts: []string{"callback"},
		text: "A real app has this page at its redirect_uri and cancel_uri.", values: map[string]string{}}
	switch {
	case query.Has("error"):
		v.title, v.parts = "Back at the app: no consent", []string{"failure", "callback"}
	case query.Has("consent_id"):
		v.title, v.parts = "Back at the app: consent given", []string{"consent", "callback"}
	}
	for _, name := range []string{"consent_id", "error", "error_type", "error_id", "error_description", "error_uri"} {
		v.values[name] = query.Get(name)
		query.Del(name)
	}
	v.values["own"] = cmp.Or(query.Encode(), "nothing")
	return v
}
