package credential

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ProblemCode is the stable "code" of an application/problem+json answer (RFC 9457) of the Account Provider.
type ProblemCode string

const (
	ProblemSecretNotFound ProblemCode = "secret-not-found" // the Secret does not exist
	ProblemSecretInvalid  ProblemCode = "secret-invalid"   // the Secret exists, its contents cannot be a credential
	ProblemForbidden      ProblemCode = "forbidden"        // the API server refused the provider's ServiceAccount
	ProblemUnavailable    ProblemCode = "unavailable"      // the API server cannot be asked, and no copy is young enough
)

// ProblemCodes lists all codes that a provider answers with.
var ProblemCodes = []ProblemCode{ProblemSecretNotFound, ProblemSecretInvalid, ProblemForbidden, ProblemUnavailable}

// ProblemMediaType is the Content-Type of a Problem.
const ProblemMediaType = "application/problem+json"

// Problem is an answer without a credential. Detail is a sentence for the cluster's administrator.
type Problem struct {
	Code   ProblemCode `json:"code"`
	Detail string      `json:"detail"`
}

func (p *Problem) Error() string { return fmt.Sprintf("%s: %s", p.Code, p.Detail) }

// DecodeProblem reads the body of an answer that is not 200. A code that this version does not know is an error.
func DecodeProblem(body []byte) (*Problem, error) {
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, errors.New("answer is no problem document")
	}
	for _, known := range ProblemCodes {
		if p.Code == known {
			return &p, nil
		}
	}
	return nil, errors.New("answer has a problem code that this version does not know")
}
