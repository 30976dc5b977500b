FROM node:22-alpine
COPY --from=roundsman /roundsman /usr/local/bin/roundsman
WORKDIR /app
COPY app.js ./
USER 1000:1000
HEALTHCHECK --start-period=30s CMD ["roundsman", "health"]
ENTRYPOINT ["roundsman", "-i", "max", "-l", "8080", "--"]
CMD ["node", "app.js"]
