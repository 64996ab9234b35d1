// Noop is the most that net/http gives, to measure the service against: it reads the body and answers constant bytes,
// as many as the service's usual answer has. It has no token, no Redis and no log.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

const answer = `{"auth_url":"https://consent.example/?sess_id=AAAAAAAAAAAAAAAAAAAAAAAAAA","expires_at":1795396347,` +
	`"id":"01m82zc9k9jjtp0wq3n5ad4p7q","session_id":"AAAAAAAAAAAAAAAAAAAAAAAAAA"}` + "\n"

func main() {
	http.HandleFunc("POST /auth/session", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
