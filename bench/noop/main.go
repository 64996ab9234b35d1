// Noop is the limit that net/http sets: it reads the body and returns constant bytes, as many as the service does.
// It has no tokens, no Redis and no log. Its argument is the address to listen on.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	const response = `{"auth_url":"https://consent.example/?sess_id=AAAAAAAAAAAAAAAAAAAAAAAAAA","expires_at":1795396347,` +
		`"id":"01m82zc9k9jjtp0wq3n5ad4p7q","session_id":"AAAAAAAAAAAAAAAAAAAAAAAAAA"}` + "\n"
	http.HandleFunc("POST /auth/session", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, response)
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
