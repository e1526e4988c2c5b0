// An OpenID provider: `node provider.mjs PORT`, on loopback; or `node provider.mjs PORT HOST ISSUER` where others have to reach it. People sign in by any name and password; `admin` runs the shop, and has used a second factor.
// Touches nothing but its port. Its keys and sessions are gone with it.

import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

const port = Number(process.argv[2]);
const host = process.argv[3] ?? '127.0.0.1';
const issuer = process.argv[4] ?? `http://127.0.0.1:${port}`;
// A resource is an absolute URI (RFC 8707); tokens for it say the audience.
const resource = 'https://shop.example/api';
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: 'storefront',
      token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/signed-in'],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      application_type: 'native',
    },
  ],
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256' }] },
  cookies: { keys: ['a key that signs cookies of tests'] },
  pkce: { required: () => true },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  extraTokenClaims: (_, token) =>
    token.accountId === 'admin' ? { groups: ['vitrine:admins'], amr: ['pwd', 'otp', 'mfa'] } : {},
  issueRefreshToken: () => true,
  features: {
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: 'openid',
        audience: 'vitrine',
        accessTokenFormat: 'jwt',
        accessTokenTTL: 300,
      }),
    },
  },
});

provider.listen(port, host);
