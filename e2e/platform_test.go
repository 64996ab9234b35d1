package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// backend is the shape of one that was written for the reference platform: how it asks for a token, and which member of
// the answer it reads.
type backend struct {
	base      string // what its base URL ends in
	media     string // of the request for a token
	body      string
	basic     bool // it names itself by HTTP Basic
	reads     string
	endUser   bool   // it creates one first
	reading   string // the member of that answer that it reads
	sessionAs map[string]any
}

var hiddenField = regexp.MustCompile(`type="hidden" name="(\w+)" value="(\w*)">`)

// Backends that were written for the reference platform run against -dev with only their base URL changed: token, end
// user, session, consent page, and back.
func TestPlatform(t *testing.T) {
	s := startDev(t, nil)
	s.waitReady(t)
	const json, form = "application/json", "application/x-www-form-urlencoded"
	for name, b := range map[string]backend{
		"JSON, token": {base: "", media: json, body: `{"client_id":"shop","client_secret":"s3cret"}`,
			reads: "token", endUser: true, reading: "end_user_id"},
		"JSON under v1, access_token": {base: "/v1", media: json,
			body:  `{"grant_type":"client_credentials","client_id":"shop","client_secret":"s3cret"}`,
			reads: "access_token", endUser: true, reading: "id",
			sessionAs: map[string]any{"permissions": []string{"accounts"}, "arrangement_id": "arr_1"}},
		"form": {base: "/v1", media: form,
			body: "grant_type=client_credentials&client_id=shop&client_secret=s3cret", reads: "access_token"},
		"form with Basic": {base: "", media: form, body: "grant_type=client_credentials&scope=api%3Auser.write", basic: true,
			reads: "access_token", endUser: true, reading: "id"},
	} {
		t.Run(name, func(t *testing.T) {
			jar, err := cookiejar.New(nil)
			testkit.Must(t, err)
			client := &http.Client{Jar: jar, Timeout: 10 * time.Second, CheckRedirect: testkit.Client.CheckRedirect}
			answer := map[string]any{}
			post := func(path, media, token, body string) {
				t.Helper()
				r, err := http.NewRequest("POST", s.url+b.base+path, strings.NewReader(body))
				testkit.Must(t, err)
				r.Header.Set("Content-Type", media)
				r.Header.Set("X-Fiskil-Version", "2025-01-01")
				if token != "" {
					r.Header.Set("Authorization", "Bearer "+token)
				} else if b.basic {
					r.SetBasicAuth("shop", "s3cret")
				}
				response, err := client.Do(r)
				a := testkit.ReadAnswer(t, response, err)
				if clear(answer); a.Status != 200 {
					t.Fatalf("POST %s%s = %d %s, want 200", b.base, path, a.Status, a.Body)
				}
				a.Decode(t, &answer)
			}
			post("/token", b.media, "", b.body)
			token, _ := answer[b.reads].(string)
			if answer["token"] != answer["access_token"] || answer["token_type"] != "Bearer" ||
				answer["expires_in"] != 900.0 || len(answer) != 4 {
				t.Errorf("POST /token answers with %d members, token_type %v, expires_in %v", len(answer),
					answer["token_type"], answer["expires_in"])
			}
			user := "eu_of_the_backend"
			if b.endUser {
				post("/end-users", json, token, `{"email":"someone@shop.example","name":"Someone"}`)
				user, _ = answer[b.reading].(string)
			}
			body := map[string]any{"end_user_id": user, "institution_id": "10",
				"redirect_uri": "https://shop.example/done?state=a%2Fb", "cancel_uri": "https://shop.example/no"}
			maps.Copy(body, b.sessionAs)
			post("/auth/session", json, token, toJSON(t, body))
			authURL, _ := answer["auth_url"].(string)

			response, err := client.Get(authURL)
			page := testkit.ReadAnswer(t, response, err)
			shows := strings.Contains(string(page.Body), "<dd>shop</dd>") &&
				strings.Contains(string(page.Body), "<dd>"+user+"</dd>")
			if page.Status != 200 || !shows {
				t.Fatalf("GET auth_url = %d %s, want the client shop and its end user", page.Status, page.Body)
			}
			fields := url.Values{"action": {"approve"}}
			for _, field := range hiddenField.FindAllStringSubmatch(string(page.Body), -1) {
				fields.Set(field[1], field[2])
			}
			response, err = client.PostForm(strings.Split(authURL, "?")[0], fields)
			back := testkit.ReadAnswer(t, response, err)
			location := back.Header.Get("Location")
			if back.Status != 303 || !strings.HasPrefix(location, "https://shop.example/done?state=a%2Fb&consent_id=") {
				t.Errorf("Approve = %d to %q, want 303 to the redirect_uri", back.Status, location)
			}
		})
	}
}

// Without -dev there is nothing of it, nor in -dev what it does not stand in for.
func TestNoPlatform(t *testing.T) {
	production, dev := startService(t, serviceEnv(t, redistest.Addr(t))), startDev(t, nil)
	for _, path := range []string{"/token", "/v1/token", "/end-users", "/v1/end-users"} {
		response, err := testkit.Client.Post(production.url+path, "application/json", strings.NewReader(
			`{"client_id":"a","client_secret":"b"}`))
		testkit.ReadAnswer(t, response, err).WantError(t, 404, "not_found")
	}
	for _, path := range []string{"/institutions", "/v1/consents", "/v1/v1/token"} {
		if status, body := dev.get(path); status != 404 {
			t.Errorf("GET %s = %d %s, want 404", path, status, body)
		}
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	testkit.Must(t, err)
	return string(text)
}
