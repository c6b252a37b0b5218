package credential

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ProblemCode is the stable "code" in an application/problem+json response (RFC 9457) of the Account Provider.
type ProblemCode string

const (
	ProblemSecretNotFound ProblemCode = "secret-not-found" // the Secret does not exist
	ProblemSecretInvalid  ProblemCode = "secret-invalid"   // the Secret exists, but its data is not valid credentials
	ProblemForbidden      ProblemCode = "forbidden"        // the API server denied the provider's ServiceAccount access
	ProblemUnavailable    ProblemCode = "unavailable"      // API server unavailable, no cached credentials
)

// ProblemCodes lists all codes that a provider returns.
var ProblemCodes = []ProblemCode{ProblemSecretNotFound, ProblemSecretInvalid, ProblemForbidden, ProblemUnavailable}

// ProblemMediaType is the Content-Type of a Problem.
const ProblemMediaType = "application/problem+json"

// Problem is a response without credentials. Detail is a sentence for the cluster's administrator.
type Problem struct {
	Code   ProblemCode `json:"code"`
	Detail string      `json:"detail"`
}

func (p *Problem) Error() string { return fmt.Sprintf("%s: %s", p.Code, p.Detail) }

// DecodeProblem decodes the body of a response whose status is not 200. An unknown code is an error.
func DecodeProblem(body []byte) (*Problem, error) {
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, errors.New("response is not a problem document")
	}
	for _, known := range ProblemCodes {
		if p.Code == known {
			return &p, nil
		}
	}
	return nil, errors.New("response has a problem code that this version does not know")
}
