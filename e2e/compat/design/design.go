// Package design describes the endpoint in Goa's design language, only from README.md's tables.
package design

import (
	"net/http"

	//lint:ignore ST1001 Goa designs use dot imports
	. "goa.design/goa/v3/dsl"
)

var _ = API("authsession", func() { Title("Auth sessions") })

var token = JWTSecurity("token", func() { Scope("api:user.write", "Create auth sessions") })

var authSession = Type("AuthSession", func() {
	Attribute("auth_url", String, "Where to send the end user")
	Attribute("expires_at", Int64, "Unix seconds")
	Attribute("id", String, "The session's public name")
	Attribute("session_id", String, "The secret in auth_url")
	Required("auth_url", "expires_at", "id", "session_id")
})

var _ = Service("auth", func() {
	Method("createSession", func() {
		Security(token, func() { Scope("api:user.write") })
		Payload(func() {
			Token("token", String, "A JWT of the platform's authorization server")
			Attribute("end_user_id", String)
			Attribute("institution_id", String)
			Attribute("redirect_uri", String)
			Attribute("cancel_uri", String)
			Attribute("permissions", ArrayOf(String))
			Attribute("arrangement_id", String)
			Required("token", "end_user_id")
		})
		Result(authSession)

		// An error without a type is Goa's ErrorResult. 408 and 504 both have the name timeout, but in a design a name
		// has one status.
		Error("bad_request")
		Error("invalid_institution_id")
		Error("unauthorized")
		Error("forbidden")
		Error("not_found")
		Error("method_not_allowed")
		Error("request_timeout", func() { Timeout() })
		Error("request_too_large")
		Error("unsupported_media_type")
		Error("too_many_requests", func() { Temporary() })
		Error("fault", func() { Fault() })
		Error("unavailable", func() { Temporary() })
		Error("timeout", func() { Timeout(); Temporary() })

		HTTP(func() {
			POST("/auth/session")
			Header("token:Authorization")
			Response(http.StatusOK)
			Response("bad_request", http.StatusBadRequest)
			Response("invalid_institution_id", http.StatusBadRequest)
			Response("unauthorized", http.StatusUnauthorized)
			Response("forbidden", http.StatusForbidden)
			Response("not_found", http.StatusNotFound)
			Response("method_not_allowed", http.StatusMethodNotAllowed)
			Response("request_timeout", http.StatusRequestTimeout)
			Response("request_too_large", http.StatusRequestEntityTooLarge)
			Response("unsupported_media_type", http.StatusUnsupportedMediaType)
			Response("too_many_requests", http.StatusTooManyRequests)
			Response("fault", http.StatusInternalServerError)
			Response("unavailable", http.StatusServiceUnavailable)
			Response("timeout", http.StatusGatewayTimeout)
		})
	})
})
