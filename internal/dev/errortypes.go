package dev

import (
	"cmp"
	"net/http"
	"net/url"
)

// errorTypes has the error types of docs/consent-page.md. code is the error that goes with the type (RFC 6749, section
// 4.1.2.1), and description the error_description. The template says what an app should do.
var errorTypes = map[string]struct{ code, description string }{
	"CONSENT_ENDUSER_DENIED":            {"access_denied", "The end user cancelled."},
	"CONSENT_ENDUSER_INELIGIBLE":        {"server_error", "The bank says that this end user cannot share."},
	"CONSENT_OTP_FAILURE":               {"server_error", "The bank's one-time password failed."},
	"CONSENT_TIMEOUT":                   {"server_error", "The end user took too long."},
	"CONSENT_UPSTREAM_PROCESSING_ERROR": {"server_error", "The bank, or another system behind the page, failed."},
	"LINK_INVALID_SESSION":              {"invalid_request", "The session has expired, was used, or never was."},
	"LINK_INTERNAL_ERROR":               {"server_error", "The session can't be read."},
}

// failure says why there is no consent: as OAuth's parameters for a URI's query, and as a message of the reference
// platform's browser SDK. kind is a key of errorTypes. id is also in the log.
func (s *sandbox) failure(id, kind string) (query, message string) {
	p, uri := errorTypes[kind], s.url+"errors/"+kind
	values := url.Values{
		"error": {p.code}, "error_type": {kind}, "error_id": {id}, "error_description": {p.description}, "error_uri": {uri},
	}
	return values.Encode(), encode(map[string]any{
		"isCompleted": false,
		"error":       p.code, "errorType": kind, "errorID": id, "errorDescription": p.description, "errorURI": uri,
	})
}

// showErrorType is GET /errors/{type}, the error_uri of a failure.
func showErrorType(w http.ResponseWriter, r *http.Request) {
	kind := r.PathValue("type")
	p, known := errorTypes[kind]
	if !known {
		http.NotFound(w, r)
		return
	}
	writePage(w, http.StatusOK, map[string]string{"title": kind, "text": p.description, kind: "shown", "back": "/"})
}

// callback is the app's page that the browser comes back to. It explains the parameters that came along, of which
// anyone can write any, so only the sandbox's own error_uri becomes a link.
func (s *sandbox) callback(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	values := map[string]string{"title": "Back at the app: nothing came along", "back": "/",
		"text": "A real app has this page at its redirect_uri and cancel_uri."}
	kind, uri := query.Get("error_type"), query.Get("error_uri")
	if query.Get("error") != "" {
		values["title"], values["unexplained"] = "Back at the app: no consent", uri
		if p, known := errorTypes[kind]; known && uri == s.url+"errors/"+kind {
			values["text"], values[kind], values["explained"], values["unexplained"] = p.description, "shown", uri, ""
		}
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
