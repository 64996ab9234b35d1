package main

import (
	"encoding/base64"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// Whoever does not start with -dev has none of the platform's paths.
func TestNoPlatform(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, path := range []string{"/token", "/v1/token", "/end-users", "/v1/end-users"} {
		ts.do(t, "POST", path, ts.jsonHeader(t), strings.NewReader(`{"client_id":"a","client_secret":"b"}`)).
			WantError(t, 404, "not_found")
	}
}

// newPlatform is a test server that stands in for the platform too. Its tokens name the client they are for.
func newPlatform(t *testing.T) *testServer {
	return newTestServer(t, nil, func(s *server) {
		s.issue = func(client string) (string, time.Duration, error) { return "token-of-" + client, time.Minute, nil }
	})
}

func TestMintToken(t *testing.T) {
	ts := newPlatform(t)
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	const json, form = "application/json", "application/x-www-form-urlencoded"
	for _, test := range []struct {
		name, media, auth, body string
		client                  string // "" is 400
		says                    string
	}{
		{"JSON", json, "", `{"client_id":"c-1","client_secret":"s","grant_type":"client_credentials"}`, "c-1", ""},
		{"JSON without a type", "", "", `{"client_secret":"s","client_id":"c-1"}`, "c-1", ""},
		{"form", form, "", "grant_type=client_credentials&client_id=c%2F1&client_secret=s", "c/1", ""},
		{"form with a charset", "Application/X-WWW-Form-Urlencoded; charset=UTF-8", "", "client_id=c&client_secret=s",
			"c", ""},
		{"Basic and a form", form, basic("c-1:s"), "grant_type=client_credentials", "c-1", ""},
		{"Basic, escaped", form, basic("c%2B1:s%3A"), "", "c+1", ""},
		{"nothing", json, "", "{}", "", "client_id and client_secret are required"},
		{"no secret", json, "", `{"client_id":"c"}`, "", "client_id and client_secret are required"},
		{"a broken form", form, "", "client_id=%zz&client_secret=s", "", "the body must be a form with good escapes"},
		{"no id", form, "", "client_secret=s", "", "client_id and client_secret are required"},
		{"an empty secret", form, basic("c:"), "", "", "client_id and client_secret are required"},
		{"no string", json, "", `{"client_id":1,"client_secret":"s"}`, "", "client_id and client_secret are required"},
		{"no JSON", json, "", "client_id=c&client_secret=s", "", "the body must be one JSON object"},
		{"a name with a space", json, "", `{"client_id":"a b","client_secret":"s"}`, "", "client_id must be printable"},
		{"a long name", json, "", `{"client_id":"` + strings.Repeat("c", 129) + `","client_secret":"s"}`, "",
			"client_id must be at most 128 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, path := range []string{"/token", "/v1/token"} {
				h := http.Header{}
				for name, value := range map[string]string{"Content-Type": test.media, "Authorization": test.auth} {
					if value != "" {
						h.Set(name, value)
					}
				}
				a := ts.do(t, "POST", path, h, strings.NewReader(test.body))
				if test.client == "" {
					e := a.WantError(t, 400, "bad_request")
					if !strings.HasPrefix(e.Message, test.says) || strings.Contains(e.Message, "zz") {
						t.Errorf("message = %q, want %q", e.Message, test.says)
					}
					continue
				}
				a.WantHeaders(t, "application/json")
				token := "token-of-" + test.client
				want := `{"token":"` + token + `","access_token":"` + token + `","token_type":"Bearer","expires_in":60}` + "\n"
				if a.Status != 200 || string(a.Body) != want {
					t.Errorf("POST %s = %d %s, want 200 %s", path, a.Status, a.Body, want)
				}
			}
		})
	}
	a := ts.do(t, "GET", "/token", nil, nil)
	a.WantError(t, 405, "method_not_allowed")
	if got := a.Header.Get("Allow"); got != "POST" {
		t.Errorf("Allow = %q, want POST", got)
	}
}

func TestCreateEndUser(t *testing.T) {
	ts := newPlatform(t)
	form := regexp.MustCompile(`^eu_[0-9A-Za-z]{27}$`)
	seen := map[string]bool{}
	for _, path := range []string{"/end-users", "/v1/end-users"} {
		for _, body := range []string{"", "{}", `{"email":"a@b.example","name":"A"}`} {
			a := ts.do(t, "POST", path, ts.jsonHeader(t), strings.NewReader(body))
			var user struct {
				EndUserID string `json:"end_user_id"`
				ID        string `json:"id"`
			}
			a.Decode(t, &user)
			if a.Status != 200 || user.ID != user.EndUserID || !form.MatchString(user.ID) || seen[user.ID] {
				t.Errorf("POST %s = %d %s, want 200 and a new end user", path, a.Status, a.Body)
			}
			seen[user.ID] = true
		}
		ts.do(t, "POST", path, nil, nil).WantError(t, 401, "unauthorized")
		ts.do(t, "POST", path, http.Header{"Authorization": {"Bearer x.y.z"}}, nil).WantError(t, 401, "unauthorized")
		ts.do(t, "DELETE", path, nil, nil).WantError(t, 405, "method_not_allowed")
	}
}

// Each session that a caller gets is told of, and no other.
func TestMade(t *testing.T) {
	var secrets []string
	ts := newTestServer(t, nil, func(s *server) { s.made = func(secret string) { secrets = append(secrets, secret) } })
	ts.post(t, ts.token(t), `{}`).WantError(t, 400, "bad_request")
	var s testkit.SessionAnswer
	a := ts.post(t, ts.token(t), goodBody)
	ts.wantSession(t, a)
	a.Decode(t, &s)
	if len(secrets) != 1 || secrets[0] != s.SessionID {
		t.Errorf("%d sessions were told of, want that of the answer", len(secrets))
	}
}
